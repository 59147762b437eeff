from typing import Any

import pytest

from hotcold.native.errors import ConfigError
from hotcold.runtime.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24MiB", 24 * 2**20),
        ("10GiB", 10 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("1.5 gb", 1_500_000_000),
        (" 7B ", 7),
        ("1048576", 2**20),
        (2**20, 2**20),
        ("4096B", 4096),
        ("0", 0),
        (0, 0),
        ("0.3KB", 300),
        ("0.0001KiB", 0),
    ],
)
def test_amounts(text: int | str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "abc", "10G", "-1", "-1GiB", "nan", "inf", "1e9", "1_000", "9999999TiB", "1..5GB", "GiB"]
    + ["\u0661GiB", "1" * 5000, -1, 2**63, True, 1.5, None, b"1", ["1"]],
)
def test_refused(text: Any) -> None:
    with pytest.raises(ConfigError, match="--vram is"):
        parse_bytes(text, "--vram")


@pytest.mark.parametrize("value", [28, "28", "1048575", "1.5"])
def test_few_bytes_without_a_unit_are_asked_back(value: int | str) -> None:
    with pytest.raises(ConfigError, match=r"--vram is .*MiB or [0-9.]+GiB meant\?.*give [0-9]+B"):
        parse_bytes(value, "--vram")


def test_format() -> None:
    assert [format_bytes(n) for n in (0, 1023, 24 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1023 B",
        "24.0 MiB",
        "5.0 TiB",
    ]
