"""What every command prints with: tables that fit, and nouns that agree with their numbers."""

import pytest

from hotcold.actors.cli.common import output


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1234567, "", "1,234,567"),
        (1, "token", "1 token"),
        (0, "token", "0 tokens"),
        (1, "pass", "1 pass"),
        (2000, "pass", "2,000 passes"),
    ],
)
def test_counts(number: int, noun: str, text: str) -> None:
    assert output.count(number, noun) == text


def test_a_table_keeps_to_its_width_where_its_last_column_is_words() -> None:
    words = "one two three " * 20
    lines = output.table(("what", "to do"), [("GPU", words), ("Ray", "nothing")]).splitlines()
    assert max(map(len, lines)) <= output.WIDTH
    assert " ".join(" ".join(lines[1:-1]).split()) == f"GPU {words}".strip()
    assert all(line.startswith(" " * 6 + "o") or line[6:].split() for line in lines[2:-1])
    assert lines[-1] == "Ray   nothing"
    wide = output.table(("path", "GB"), [("x" * 120, "5")]).splitlines()
    assert wide[1] == "x" * 120 + "   5"
