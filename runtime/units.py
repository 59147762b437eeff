"""Amounts of memory as people write them: "24MiB", "1.5GB", 28000000.

Called wherever a budget is read (command line, Engine.launch) or shown.
"""

import re
from fractions import Fraction

from hotcold.native.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_AMOUNT = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?([a-z]*)", re.ASCII)
_LIMIT = 2**63  # what a C int64_t holds
_DOUBTFUL = 2**20  # fewer bytes without a unit were meant in another unit


def parse_bytes(value: int | str, what: str = "amount of memory") -> int:
    """Bytes of an amount such as "24MiB", "1.5GB" or 28000000, rounded down.

    Units are B, KB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024), in either
    case; `what` is the option's name, for the message.

    Raises:
        ConfigError: not an amount, negative, beyond 2**63 - 1 bytes, or from 1 to 2**20 - 1 without
            a unit.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        amount, unit = value, ""
    else:
        match = _AMOUNT.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if match is None or match[2] not in _UNITS:
            raise ConfigError(
                f"{what} is {value!r}; give bytes or a number with a unit, such as 24MiB or 1.5GB"
            )
        amount, unit = int(Fraction(match[1]) * _UNITS[match[2]]), match[2]
    if not unit and 0 < amount < _DOUBTFUL:
        ask = f"is {value}MiB or {value}GiB meant? If not, give {amount}B"
        raise ConfigError(f"{what} is {value!r}, a few bytes; {ask}")
    if not 0 <= amount < _LIMIT:
        raise ConfigError(f"{what} is {value!r}; it must be from 0 to 2**63 - 1 bytes")
    return amount


def format_bytes(amount: int | float) -> str:
    """An amount for people, in powers of 1024: "24.0 MiB"."""
    value = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_budgets(vram: str | int | None, gpus: int) -> list[int | None]:
    """Bytes for each of so many GPU executors; None: not limited.

    Raises:
        ConfigError: not a size, or another number of sizes than GPU executors.
    """
    given = vram.split(",") if isinstance(vram, str) else [vram]
    if len(given) not in (1, gpus):
        raise ConfigError(
            f"vram {vram!r} has {len(given)} sizes, for {gpus} GPU executors; give one for all, or "
            "one for each"
        )
    sizes = [None if size is None else parse_bytes(size, "vram") for size in given]
    return sizes * (gpus // len(sizes))
