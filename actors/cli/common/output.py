"""Output of the command line: results to standard output, everything else to standard error.

Used by every command. Formats tables, numbers, progress and the JSON line.
"""

import json
import math
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from hotcold.actors.cli.common.state import State
from hotcold.native.errors import ConfigError

WIDTH = 100  # columns that tables and sentences keep to
PROGRESS_AFTER_S = 2.0
PAST_BOUND = 1.05  # shares of a bound that are larger are the bound's fault
PROGRESS_EVERY_S = 5.0


def note(text: str) -> None:
    """A message for the person watching, on standard error; lost where that cannot be written."""
    with suppress(OSError):
        click.echo(text, err=True)


def one_line(text: str) -> str:
    """Text with every run of white space, line ends included, made one blank."""
    return " ".join(text.split())


def error(text: str) -> None:
    """The one line a failed command leaves on standard error."""
    note(f"hotcold: error: {one_line(text)}")


def as_json() -> bool:
    """Whether the command that runs was given --json."""
    state = click.get_current_context().find_object(State)
    return state is not None and state.json


def write_files(out: Path, what: str, files: Mapping[str, bytes]) -> None:
    """Write files into a folder, made if it is not there.

    Raises:
        ConfigError: it cannot be written; says `what` was to be.
    """
    from hotcold.runtime.files.atomic import write_atomically

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise ConfigError(f"cannot write {what} to {out}: {error.strerror}") from error


def emit_json(data: dict[str, Any]) -> None:
    """With --json, one object on one line of standard output; what is not finite becomes null."""
    if as_json():
        click.echo(json.dumps(finite(data), allow_nan=False))
        sys.stdout.flush()


def finite(value: Any) -> Any:
    """Plain data with null for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def wrapped(text: str, indent: int = 0) -> str:
    """Text in lines of WIDTH, all but the first indented; a longer word stays whole."""
    lines = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    lines.subsequent_indent = " " * indent
    return lines.fill(text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned plain text: numbers to the right, words to the left, two blanks between columns.

    Words in the last column go on in the next line where the table would be wider than WIDTH.
    """
    cells = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    right = [
        bool(rows) and all(_numeric(row[column]) for row in rows) for column in range(len(headers))
    ]
    lines = []
    for row in cells:
        sides = zip(row, widths, right, strict=True)
        padded = [f"{cell:{'>' if number else '<'}{width}}" for cell, width, number in sides]
        lines.append("  ".join(padded).rstrip())
    before = sum(widths[:-1]) + 2 * len(widths[:-1])
    wraps = before < WIDTH - 20  # else too little room is left
    return "\n".join(wrapped(line, before) if wraps else line for line in lines)


def _numeric(cell: str) -> bool:
    return cell in {"", "-"} or cell.lstrip("-+")[:1].isdigit()


def count(number: int, noun: str = "") -> str:
    """1234567 as '1,234,567'; with a noun '1 pass' or '2 passes'."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}" if noun else f"{number:,}"


def percent(share: float) -> str:
    """0.253 as '25.3 %'; '-' where there is nothing to divide."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else "-"


def of_bound(share: float) -> str:
    """A share of a bound; 'wrong' where the run was clearly faster, so that no bound it was."""
    return "wrong" if share > PAST_BOUND else percent(share)


def note_wrong_bound(command: str, shares: Sequence[float]) -> None:
    """Say what to do where one of these shares is past its bound."""
    if max(shares) > PAST_BOUND:
        note(
            f"{command}: {percent(max(shares))} of the bound: unless the weights fit the caches, "
            "the hardware file is wrong: measure again with `hotcold hardware`"
        )


class Progress:
    """Tells how far a long job is: a line that rewrites itself, or plain lines without a terminal.

    Silent for the first two seconds, so that short jobs print nothing. For example "profiling",
    counted in "token".
    """

    def __init__(self, what: str, unit: str) -> None:
        self._what, self._unit = what, unit
        self._terminal = sys.stderr.isatty()
        self._every_s = 0.2 if self._terminal else PROGRESS_EVERY_S
        self._next_s = time.monotonic() + PROGRESS_AFTER_S
        self._shown = False

    def __call__(self, done: int, share: float, more: str = "") -> None:
        """Show how much is done, its share of the whole, and more, if it is time to."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + self._every_s
        self._shown = True
        text = f"{self._what}: {count(done, self._unit)}, {100 * share:.0f} %{more}"
        if self._terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        else:
            note(text)

    def close(self) -> None:
        """End the line that was being rewritten."""
        if self._shown and self._terminal:
            note("")
