"""Checks of values, with the error a user reads; imports nothing compiled."""

from hotcold.native.errors import ConfigError


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ConfigError unless value is an integer of [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} {value!r} is not a whole number in {low}..{high}")
