"""Settings of plug-ins: --set share=0.8 becomes a dataclass field of the right type.

Called wherever a plug-in is constructed. A plug-in's parameters are its dataclass fields; unknown
keys and values that do not convert are refused, so a misspelt setting is never silently ignored.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hotcold.native.errors import ConfigError
from hotcold.runtime.plugins.blame import blaming, source_file

Setting = str | int | float | bool | None
PREFIXES = {
    "policy": "placement",
    "placement": "placement",
    "schedule": "schedule",
    "predictor": "predictor",
}


def split_settings(
    settings: Mapping[str, Setting] | Iterable[str],
) -> dict[str, dict[str, Setting]]:
    """Sort settings by the kind of plug-in they are for: placement, schedule, predictor.

    Settings are {"share": 0.8}, or "share=0.8" texts as given to --set. A key may say whose it is:
    policy.share, schedule.depth, predictor.rank; without a prefix it is the placement policy's.

    Raises:
        ConfigError: a text without "=", a key that is not a name, or one given twice.
    """
    pairs: list[tuple[str, Setting]]
    if isinstance(settings, Mapping):
        pairs = list(settings.items())
    else:
        pairs = [_pair(text) for text in settings]
    result: dict[str, dict[str, Setting]] = {kind: {} for kind in PREFIXES.values()}
    for key, value in pairs:
        prefix, dot, name = str(key).rpartition(".")
        kind = PREFIXES.get(prefix if dot else "policy")
        if kind is None or not name.isidentifier():
            raise ConfigError(
                f"setting {key!r} is not a name such as share, policy.share, schedule.share or "
                "predictor.share"
            )
        if name in result[kind]:
            raise ConfigError(f"setting {name!r} of the {kind} plug-in is given twice")
        result[kind][name] = value
    return result


def instantiate(
    plugin: object, settings: Mapping[str, Setting], name: str = "", noun: str = "policy"
) -> object:
    """Construct a plug-in with its settings; an object passed in is returned as it is.

    Texts are converted to the fields' types; `name` and `noun` are for messages.

    Raises:
        ConfigError: an unknown or missing setting, or a value that does not convert.
        PolicyError: the constructor raised.
    """
    name = name or getattr(plugin, "__name__", type(plugin).__name__)
    if not isinstance(plugin, type):
        if settings:
            raise ConfigError(
                f"{name!r} was passed as an object, which takes no settings; "
                f"construct it with {next(iter(settings))!r}"
            )
        return plugin
    with blaming(name, source_file(plugin), noun):
        hints = get_type_hints(plugin)
    fields = {}
    if dataclasses.is_dataclass(plugin):
        fields = {field.name: field for field in dataclasses.fields(plugin) if field.init}
    values = {}
    for key, value in settings.items():
        if key not in fields:
            raise ConfigError(_unknown(name, key, list(fields)))
        values[key] = _convert(value, hints[key], f"setting {key!r} of {name!r}")
    for key, field in fields.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if key not in values and not optional:
            raise ConfigError(f"{name!r} needs the setting {key!r}: --set {key}=VALUE")
    with blaming(name, source_file(plugin), noun):
        return plugin(**values)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"setting {text!r} must be NAME=VALUE, such as share=0.8")
    return key.strip(), value.strip()


def _unknown(name: str, key: str, known: list[str]) -> str:
    if not known:
        return f"{name!r} has no settings, so none is called {key!r}"
    close = difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{name!r} has no setting {key!r}{hint}; it has: {', '.join(known)}"


def _convert(value: Setting, kind: Any, what: str) -> object:
    choices = _choices(kind)
    for choice in choices:
        try:
            return _convert_one(value, choice)
        except (ValueError, OverflowError):
            continue
    expected = " or ".join(_show(choice) for choice in choices)
    raise ConfigError(f"{what} is {value!r}; it must be {expected}")


def _choices(kind: Any) -> list[Any]:
    """The alternatives of a type: members of a union and values of a Literal, text last."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        parts = [choice for member in get_args(kind) for choice in _choices(member)]
        return sorted(parts, key=lambda choice: choice is str)
    if origin is Literal:
        return [Literal[value] for value in get_args(kind)]
    return [kind]


def _convert_one(value: Setting, kind: Any) -> object:  # noqa: PLR0911
    text = value if isinstance(value, str) else None
    if get_origin(kind) is Literal:
        (expected,) = get_args(kind)
        if value == expected or text == str(expected):
            return expected
    elif kind is type(None):
        if value is None or (text is not None and text.lower() == "none"):
            return None
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if text is not None and text.lower() in ("true", "yes", "on", "1"):
            return True
        if text is not None and text.lower() in ("false", "no", "off", "0"):
            return False
    elif kind is int and not isinstance(value, (bool, float)) and value is not None:
        return int(value)
    elif kind is float and not isinstance(value, bool) and value is not None:
        number = float(value)
        if not math.isnan(number):
            return number
    elif kind in (str, Path) and text is not None:
        return kind(text)
    raise ValueError


def _show(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return repr(get_args(kind)[0])
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    names |= {Path: "a path", type(None): "none"}
    return names.get(kind, f"{getattr(kind, '__name__', kind)} (not settable as text)")
