import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.checkout import ROOT

from hotcold.native.errors import PolicyError
from hotcold.policies.placement.greedy import Greedy
from hotcold.runtime.plugins import registry
from hotcold.runtime.plugins.registry import BUILT_IN, find, listing, load

MINE = "class Mine:\n    def place(self, problem): ...\n\nclass _Hidden: ...\n"


def test_built_ins_are_the_entry_points_of_pyproject() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings tomllib")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for kind, table in BUILT_IN.items():
        assert points.get(f"hotcold.{kind}", {}) == table


@pytest.mark.parametrize("kind", ["placement", "schedule"])
def test_built_ins_are_listed_and_found(kind: Any) -> None:
    entries = {entry.name: entry for entry in listing(kind)}
    assert list(entries) == sorted(entries) and set(BUILT_IN[kind]) <= set(entries)
    for name, target in BUILT_IN[kind].items():
        assert entries[name].target == target and entries[name].origin == "hotcold"
        plugin = find(kind, name)
        assert isinstance(plugin, type) and plugin.__doc__


def test_listing_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN["placement"], "ghost", "no.such.module:Ghost")
    assert "ghost" in [entry.name for entry in listing("placement")]
    with pytest.raises(PolicyError, match="policy 'no.such.module:Ghost'.*ModuleNotFoundError"):
        find("placement", "ghost")


def fake_points(*pairs: tuple[str, str, str]) -> Any:
    def points(group: str) -> list[Any]:
        return [
            SimpleNamespace(name=n, value=v, dist=SimpleNamespace(name=d, version="1.0"))
            for n, v, d in pairs
            if group == "hotcold.placement"
        ]

    return points


def test_foreign_plug_ins_and_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = BUILT_IN["placement"]["greedy"]
    mine = ("mine", "mine_package:Mine", "mine-package")
    monkeypatch.setattr(metadata, "entry_points", fake_points(mine, ("greedy", greedy, "hotcold")))
    entry = {entry.name: entry for entry in listing("placement")}["mine"]
    assert (entry.origin, entry.version, entry.target) == ("mine-package", "1.0", mine[1])
    monkeypatch.setattr(metadata, "entry_points", fake_points(("greedy", "other:G", "thief")))
    with pytest.raises(PolicyError, match="two placement policies are named 'greedy'.*thief"):
        find("placement", "greedy")


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(PolicyError) as caught:
        find("placement", "nope")
    assert str(caught.value) == (
        "no placement policy named 'nope'; installed: all-cpu, ffn-split, greedy, ilp, latency, "
        "layer-split, oracle, per-layer, powerinfer-index, random; "
        "or pass 'file.py:Class'"
    )
    with pytest.raises(PolicyError, match="did you mean 'greedy'"):
        find("placement", "gredy")
    with pytest.raises(PolicyError, match="name its class too: 'mine.py:Class'"):
        find("placement", "mine.py")
    with pytest.raises(PolicyError, match="no predictor named 'x'; installed: exact"):
        find("predictor", "x")


def test_objects_classes_files_and_modules(tmp_path: Path) -> None:
    policy = Greedy()
    assert find("placement", policy) is policy and find("placement", Greedy) is Greedy
    assert find("placement", "hotcold.policies.placement.greedy:Greedy") is Greedy
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    first = find("placement", f"{file}:Mine")
    assert isinstance(first, type) and first.__name__ == "Mine"
    file.write_text(MINE.replace("place", "replace"))  # an edited file is read again
    with pytest.raises(PolicyError, match="not a placement policy: it has no method 'place'"):
        find("placement", f"{file}:Mine")
    assert list(tmp_path.iterdir()) == [file]  # no __pycache__ beside the user's file


def test_a_file_may_import_its_neighbour_but_not_shadow_a_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "neighbour_of_mine.py").write_text("x = 1")
    (tmp_path / "bisect.py").write_text("raise RuntimeError('shadowed')")
    file = tmp_path / "mine.py"
    file.write_text("import bisect\nimport neighbour_of_mine\n" + MINE)
    monkeypatch.delitem(sys.modules, "bisect", raising=False)
    assert load(f"{file}:Mine")


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (MINE, "Mien", r"has no class 'Mien'; did you mean .*mine.py:Mine\?"),
        ("x = 1", "Mine", "has no class 'Mine'; it defines no class"),
        ("x = (\n", "Mine", "mine.py:1: SyntaxError"),
        ("\nimport no_such_thing\n", "Mine", "mine.py:2: ModuleNotFoundError: No module named"),
        ("\n\nraise SystemExit(3)", "Mine", "mine.py:3: SystemExit: 3"),
        ("\n1 / 0", "Mine", "mine.py:2: ZeroDivisionError: division by zero"),
        ("Mine = 3", "Mine", "not a placement policy"),
        ("x = '\\0'\n\0", "Mine", "mine.py.*null bytes"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, source: str, name: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(PolicyError, match=message):
        find("placement", f"{file}:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:Mine", "there is no file nowhere.py; paths start at"),
        ("/:Mine", "is neither"),
        (":Mine", "is neither"),
        ("", "no placement policy named ''"),
        ("no_such_package.module:Mine", "ModuleNotFoundError"),
        ("hotcold.policies.placement.greedy:", "has no class ''"),
    ],
)
def test_targets_that_cannot_be_used(name: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        find("placement", name)
