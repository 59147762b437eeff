"""Dataclasses as arrays and plain JSON data, and back, by their type hints.

Used for plans on disk (plan.py) and for messages to the policies' child process (messages.py).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

Made = TypeVar("Made")


@cache
def hints(cls: Hashable) -> dict[str, Any]:
    """Types of a class's fields by name."""
    return get_type_hints(cls)


def to_record(made: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a dataclass, and its other fields as plain data."""
    parts = {field.name: getattr(made, field.name) for field in fields(made)}
    arrays = {name: part for name, part in parts.items() if isinstance(part, np.ndarray)}
    return arrays, {name: plain(part) for name, part in parts.items() if name not in arrays}


def plain(value: Any) -> Any:
    """A value as JSON holds it: dataclasses and mappings as dict, sequences as list."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def from_record(cls: type[Made], data: Mapping[str, Any]) -> Made:
    """Inverse of to_record, given both together; what is not there takes its default.

    Raises:
        TypeError, ValueError, AttributeError: data of another form.
    """
    kinds = hints(cast(Hashable, cls))
    known = {field.name for field in fields(cast(Any, cls))}
    made = {name: _of(kinds[name], data[name]) for name in known & set(data)}
    return cast(Callable[..., Made], cls)(**made)


def _of(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return from_record(cast(type, hint), value)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Mapping:
        return {name: _of(inner[1], part) for name, part in dict(value).items()}
    if origin is tuple and inner[-1] is not ...:
        return tuple(_of(kind, part) for kind, part in zip(inner, value, strict=True))
    return tuple(_of(inner[0], part) for part in value) if origin in (tuple, Sequence) else value


def fits(value: object, hint: Any) -> bool:
    """Whether plain data is of a field's type; an int is a size from 0 on, a float is finite."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Mapping:
        return isinstance(value, dict) and all(fits(part, inner[1]) for part in value.values())
    if origin is tuple:
        return isinstance(value, list) and all(fits(part, inner[0]) for part in value)
    if hint is float:  # nor an integer that no float can hold
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(cast(float, value)) < 1e308
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return isinstance(value, hint)
