from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.runtime.plugins.settings import instantiate, split_settings


@dataclass(frozen=True)
class Plugin:
    share: float = 1.0
    seed: int = 0
    fast: bool = False
    mode: Literal["a", "b", 3] = "a"
    name: str = ""
    limit: int | None = None
    old: Optional[float] = None  # noqa: UP045 - authors still write it
    path: Path = Path()
    mixed: "int | str" = 0
    hidden: int = field(default=0, init=False)
    table: dict[str, int] = field(default_factory=dict)


@dataclass
class Needy:
    share: float


class Plain:
    pass


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("share", "0.8", 0.8),
        ("share", "1", 1.0),
        ("share", 1, 1.0),
        ("share", "inf", float("inf")),
        ("seed", "-3", -3),
        ("seed", 4, 4),
        ("fast", "true", True),
        ("fast", "off", False),
        ("fast", True, True),
        ("mode", "b", "b"),
        ("mode", "3", 3),
        ("name", "x=y", "x=y"),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("limit", None, None),
        ("old", "0.5", 0.5),
        ("path", "a/b", Path("a/b")),
        ("mixed", "12", 12),
        ("mixed", "twelve", "twelve"),
    ],
)
def test_typed_fields(key: str, value: Any, expected: object) -> None:
    got = getattr(instantiate(Plugin, {key: value}), key)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("share", "much", "setting 'share' of 'Plugin' is 'much'; it must be a number"),
        ("share", "nan", "must be a number"),
        ("share", True, "must be a number"),
        ("share", None, "must be a number"),
        ("seed", "1.5", "must be a whole number"),
        ("seed", 1.0, "must be a whole number"),
        ("seed", "1" * 5000, "must be a whole number"),
        ("fast", "maybe", "must be true or false"),
        ("mode", "c", "must be 'a' or 'b' or 3"),
        ("limit", "x", "must be a whole number or none"),
        ("table", "x", "not settable as text"),
        ("shar", "1", "has no setting 'shar'; did you mean 'share'?"),
        ("hidden", "1", "has no setting 'hidden'"),
    ],
)
def test_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        instantiate(Plugin, {key: value})


def test_missing_settings_and_plain_classes() -> None:
    with pytest.raises(ConfigError, match="needs the setting 'share': --set share=VALUE"):
        instantiate(Needy, {})
    assert isinstance(instantiate(Plain, {}), Plain)
    with pytest.raises(ConfigError, match="'Plain' has no settings"):
        instantiate(Plain, {"share": "1"})
    plugin = Plugin()
    assert instantiate(plugin, {}) is plugin
    with pytest.raises(ConfigError, match="passed as an object"):
        instantiate(plugin, {"share": "1"})


def test_a_constructor_that_raises_is_blamed() -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("boom")

    with pytest.raises(PolicyError, match=r"policy 'Broken': test_settings.py:\d+: RuntimeError"):
        instantiate(Broken, {})


def test_split() -> None:
    texts = ["share=0.8", "policy.seed=1", "schedule.depth=a=b", "predictor.rank = 8"]
    expected = {
        "placement": {"share": "0.8", "seed": "1"},
        "schedule": {"depth": "a=b"},
        "predictor": {"rank": "8"},
    }
    assert split_settings(texts) == expected
    assert split_settings({"share": 0.8})["placement"] == {"share": 0.8}
    assert split_settings(()) == dict.fromkeys(expected, {})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["share"], "must be NAME=VALUE"),
        (["=1"], "is not a name"),
        (["other.share=1"], "is not a name"),
        (["policy.a.b=1"], "is not a name"),
        (["share=1", "policy.share=2"], "'share' of the placement plug-in is given twice"),
    ],
)
def test_split_refuses(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        split_settings(texts)
