"""Results of measurements: nested dicts by case, the figures at their ends."""

from collections.abc import Iterator
from typing import Any

Path = tuple[str, ...]


def put(result: dict[str, Any], path: Path, figures: dict[str, Any]) -> None:
    """Figures at a place, made if it is not there."""
    for key in path[:-1]:
        result = result.setdefault(key, {})
    result[path[-1]] = figures


def found(result: dict[str, Any], key: str, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Place and figures wherever figures have a key; not looked for inside of these."""
    for name, value in result.items():
        if isinstance(value, dict):
            if key in value:
                yield (*path, name), value
            else:
                yield from found(value, key, (*path, name))
