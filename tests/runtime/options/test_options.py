"""The table of options: its checks, and everything that is made from it."""

import math
from dataclasses import dataclass, fields
from typing import Any

import click
import pytest
from support.checkout import ROOT

from hotcold.actors.cli.main import cli
from hotcold.actors.engine.engine import Engine
from hotcold.native.errors import ConfigError
from hotcold.native.options.table import check_names, option, rows
from hotcold.runtime.hardware.machine_file import reference_machines
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.options.config import COMMANDS, ENGINE, SAMPLING, EngineConfig, Sampling
from hotcold.runtime.options.page import page

# What these commands define themselves, for they take several or call it otherwise.
OWN = {
    "compare": {"policy", "schedule", "vram", "hardware"},
    "evaluate": {"predictor"},
    "roofline": {"schedule", "predictor_dtype"},
    "bench prompt": {"kv_dtype"},
}


@pytest.mark.parametrize("table", [EngineConfig, Sampling])
def test_every_setting_is_a_row_and_every_row_has_words(table: type) -> None:
    assert list(rows(table)) == [field.name for field in fields(table)]
    for name, row in rows(table).items():
        assert row.help.endswith(".") and name in str(table.__doc__), name
        assert row.level == "" or row.level in COMMANDS, name


def command(name: str) -> click.Command:
    """A command by the words that are typed for it."""
    found: Any = cli
    for word in name.split():
        found = found.get_command(click.Context(found), word)
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("name", [name for names in COMMANDS.values() for name in names])
def test_a_command_takes_what_the_table_says(name: str) -> None:
    order = list(COMMANDS)
    last = next(place for place, level in enumerate(order) if name in COMMANDS[level])
    levels = {*order[: last + 1]}
    typed = {flag for one in command(name).params for flag in one.opts}
    own = OWN.get(name, set())
    for row in ENGINE.values():
        takes = row.level in levels and name not in row.not_for
        if row.name in own:
            assert takes, f"{row.name} is not for {name}"
        elif takes:
            assert f"--{row.dashed}" in typed
        elif name not in ("profile", "sparsity", "train-predictors"):  # which mean others by them
            assert f"--{row.dashed}" not in typed, row.name


def test_help_names_the_reference_machines() -> None:
    assert f": {', '.join(reference_machines())}, or a file" in ENGINE["hardware"].help


def test_generate_takes_every_option_of_sampling() -> None:
    typed = {flag for one in command("generate").params for flag in one.opts}
    assert {f"--{row.dashed}" for row in SAMPLING.values()} <= typed


@pytest.mark.parametrize(("name", "table"), [("generate", EngineConfig), ("plant", PlantOptions)])
def test_the_defaults_of_help_are_those_of_the_table(name: str, table: type) -> None:
    said = " ".join(command(name).get_help(click.Context(command(name))).split())
    for row in rows(table).values():
        if f"--{row.dashed} " in said and row.default_text:
            assert f"{row.help} [default: {row.default_text}]" in said, row.name


def test_the_page_is_that_of_the_table() -> None:
    kept = (ROOT / "examples" / "OPTIONS.md").read_text(encoding="utf-8")
    assert kept == page(), "python -m hotcold.runtime.options.page > examples/OPTIONS.md"


def test_the_api_says_the_same() -> None:
    said = " ".join(str(Engine.launch.__doc__).split())
    for name, row in ENGINE.items():
        assert f"{name}: {row.help}" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"restarts": -1}, "restarts -1 is not a whole number in 0..1000"),
        ({"restarts": True}, "restarts True is not a whole number in 0..1000"),
        ({"context": 1.0}, "context 1.0 is not a whole number in 1..16777216"),
        ({"threads": 0}, "threads 0 is not a whole number of at least 1"),
        ({"threads": 100_000}, "threads 100000 is not a whole number in 1.."),
        ({"policy_timeout": 0}, "policy_timeout 0 is not a number above 0"),
        ({"policy_timeout": math.inf}, "policy_timeout inf is not a number above 0"),
        ({"telemetry": "here"}, "telemetry 'here' is no address"),
        ({"stuck_s": "soon"}, "stuck_s 'soon' is not a number in 0.1..3600"),
        ({"bus_share": math.nan}, "bus_share nan is not a number in 0..0.9"),
        ({"pin": 2}, "pin 2 is not True or False"),
        ({"kv_dtype": None}, "kv_dtype None is unknown; choose from float32, float16"),
        ({"store": "ram"}, "store 'ram' is unknown; choose from file, memfd, private"),
    ],
)
def test_what_is_not_allowed_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        EngineConfig(**given)
    assert str(refused.value).startswith(message)


def test_the_ends_of_a_range_are_allowed() -> None:
    for name, row in ENGINE.items():
        ends = (row.low, row.high) if not row.above else (row.high,)
        for end in ends:
            if end is not None:
                EngineConfig(**{name: end})
    Sampling(top_p=1.0, temperature=0.0, seed=(1 << 64) - 1)
    with pytest.raises(ConfigError, match=r"top_p 0.0 is not a number in \(0, 1\]"):
        Sampling(top_p=0.0)


def test_a_variable_is_checked_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_STORE", "ram")
    with pytest.raises(ConfigError, match="HOTCOLD_STORE 'ram' is unknown; choose from file"):
        EngineConfig()
    EngineConfig(store="file")
    monkeypatch.setenv("HOTCOLD_STORE", "")
    EngineConfig()


def test_a_misspelt_name_is_refused() -> None:
    check_names(["vram", "policy"], EngineConfig)
    with pytest.raises(ConfigError, match="unknown option 'vramm'; did you mean 'vram'"):
        check_names(["vramm"], EngineConfig)
    with pytest.raises(ConfigError, match="unknown option 'xyzzy'; options: model, vram"):
        check_names(["xyzzy"], EngineConfig)


def test_the_type_of_a_value_is_that_of_its_field() -> None:
    @dataclass(frozen=True)
    class Table:
        number: int | None = option(None, "A number.")
        share: float = option(0.5, "A share.")
        on: bool = option(False, "On or off.")
        size: str | int | None = option(None, "A size.")
        texts: tuple[str, ...] = option((), "Texts.")

    kinds = {name: row.type for name, row in rows(Table).items()}
    assert kinds == {"number": int, "share": float, "on": bool, "size": str, "texts": str}
