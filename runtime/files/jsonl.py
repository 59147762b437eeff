"""JSON lines as texts: one JSON object a line, one of its fields the text.

Used by windows.py for files named .jsonl or .ndjson. A line without text is skipped and counted;
the number of the first and what is wrong with it are kept. A file in which no line holds text is an
error. Blank lines and empty texts are not counted.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hotcold.native.errors import ConfigError

TEXT_FIELD = "text"
MAX_LINE_BYTES = 1 << 26
_SUFFIXES = (".jsonl", ".ndjson")


@dataclass
class Skipped:
    """Lines that held no text."""

    lines: int = 0
    first: str = ""

    def add(self, path: Path, number: int, what: str) -> None:
        """Count a line."""
        self.lines += 1
        self.first = self.first or f"line {number} of {path.name}: {what}"

    def __str__(self) -> str:
        """A sentence for people."""
        lines = "line was" if self.lines == 1 else "lines were"
        return f"{self.lines} {lines} skipped, the first: {self.first}"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name a text file that cannot be read by a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"text file {path} cannot be read: {error.strerror}") from error


def is_jsonl(path: Path) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return path.suffix.lower() in _SUFFIXES


def documents(path: Path, field: str, skipped: Skipped) -> Iterator[tuple[str, int]]:
    """The text of each line that has one, and the bytes read until then.

    Raises:
        ConfigError: it cannot be read, or no line of it has a text.
    """
    here, texts, read_bytes = Skipped(), 0, 0
    with reading(path), open(path, "rb") as file:
        for number, (line, length) in enumerate(_lines(file), start=1):
            read_bytes += length
            try:
                text = _text_of(line, length, field)
            except ValueError as problem:
                skipped.add(path, number, str(problem))
                here.add(path, number, str(problem))
                continue
            if text is not None:
                texts += 1
                yield text, read_bytes
    if here.lines and not texts:
        raise ConfigError(
            f"text file {path} has no line with a text ({here}); is {field!r} its field?"
        )


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    while line := file.readline(MAX_LINE_BYTES):
        length, rest = len(line), line
        while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
            length += len(rest)
        yield line, length


def _text_of(line: bytes, length: int, field: str) -> str | None:
    """A line's text; None for a blank line; a ValueError says what is wrong with it."""
    if length > len(line):
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        return None
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8 (byte 0x{line[error.start]:02x} at {error.start})"
        ) from None
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    if field not in found:
        raise ValueError(f"it has no field {field!r}, only {', '.join(sorted(found)[:5]):.80}")
    text = found[field]
    if not isinstance(text, str):
        raise ValueError(f"its field {field!r} is no string")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"its field {field!r} holds half a character")
    return text
