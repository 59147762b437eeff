"""What running a command of the command line gives, for the tests of tests/cli."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """Exit code and everything printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def only_line(text: str) -> str:
    """The text's one line; the test fails if it has none or several."""
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]
