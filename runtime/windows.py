"""Text files as windows of token ids: what the profiler and other offline measurements run over.

Files are read in pieces, so their size does not matter; a piece ends after a line end, where
tokenizers do not look across. The same files always give the same windows. No model in here.
"""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from hotcold.runtime.errors import ConfigError

CHUNK_BYTES = 1 << 16


class TextEncoder(Protocol):
    """What the profiler needs of a tokenizer."""

    def encode(self, text: str) -> Sequence[int]:
        """Ids of a text, with the tokenizer's own template around them."""
        ...


def token_windows(
    paths: Sequence[Path], tokenizer: TextEncoder, context: int, max_tokens: int | None = None
) -> Iterator[tuple[list[int], int]]:
    """Windows of at most `context` ids, and the bytes of text read until then.

    Every window starts with the ids the tokenizer's template puts first. The last window of a file,
    and of the limit, may be shorter.

    Raises:
        ConfigError: no room for text, a file that cannot be read, or that is not UTF-8.
    """
    empty, probe = list(tokenizer.encode("")), list(tokenizer.encode("a"))
    alike = (a == b for a, b in zip(empty, probe, strict=False))
    lead = next((i for i, same in enumerate(alike) if not same), min(len(empty), len(probe)))
    room = context if max_tokens is None else min(context, max_tokens)
    if room <= lead:
        raise ConfigError(
            f"a window of {room} tokens has no room for text after the {lead} ids it starts with; "
            "raise the context or the token limit"
        )
    done = 0
    for window, read_bytes in _windows(paths, tokenizer, context, (empty[:lead], empty[lead:])):
        cut = window if max_tokens is None else window[: max_tokens - done]
        if len(cut) > lead:
            yield cut, read_bytes
        done += len(cut)
        if max_tokens is not None and done + lead >= max_tokens:
            return


def _windows(
    paths: Sequence[Path], tokenizer: TextEncoder, context: int, frame: tuple[list[int], list[int]]
) -> Iterator[tuple[list[int], int]]:
    """All windows; frame is what the tokenizer puts before and after a text."""
    head, tail = frame
    before = 0
    for path in paths:
        pending, size = list(head), file_bytes(path)  # checked before an open() could block
        for text, read_bytes in _pieces(path):
            ids = list(tokenizer.encode(text))
            pending += ids[len(head) : len(ids) - len(tail)]
            while len(pending) >= context:
                yield pending[:context], before + read_bytes
                pending = head + pending[context:]
        before += size
        if len(pending) > len(head):
            yield pending, before


def file_bytes(path: Path) -> int:
    """Size of a text file.

    Raises:
        ConfigError: it is missing, or something a read could block on.
    """
    try:
        if path.is_file():
            return path.stat().st_size
    except OSError as error:
        raise ConfigError(f"text file {path} cannot be read: {error.strerror}") from error
    raise ConfigError(f"text file {path} is missing or not a regular file")


def _pieces(path: Path) -> Iterator[tuple[str, int]]:
    """Text of a file in pieces of about CHUNK_BYTES, cut after line ends where there are any."""
    offset, rest, held = 0, b"", ""
    try:
        with open(path, "rb") as file:
            while True:
                chunk = file.read(CHUNK_BYTES)
                data = rest + chunk
                try:
                    text, used = codecs.utf_8_decode(data, "strict", not chunk)
                except UnicodeDecodeError as error:
                    raise ConfigError(
                        f"text file {path} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
                        f"{offset + error.start}; convert it first"
                    ) from None
                offset, rest, held = offset + used, data[used:], held + text
                cut = len(held) if not chunk else held.rfind("\n") + 1 or held.rfind(" ")
                if cut > 0:
                    yield held[:cut], offset
                    held = held[cut:]
                elif len(held) > 4 * CHUNK_BYTES:  # no place to cut at all
                    yield held, offset
                    held = ""
                if not chunk:
                    return
    except OSError as error:
        raise ConfigError(f"text file {path} cannot be read: {error.strerror}") from error
