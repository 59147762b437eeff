"""Text files as windows of token ids, for the profiler and other offline measurements.

Plain text is read in pieces, so a file may have any size; a piece ends at a line end, because
tokenizers do not merge across it. Each line of a JSON lines file is a document, and no window spans
two of them (jsonl.py). The same files always give the same windows. No model is used here.
"""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from hotcold.native.errors import ConfigError
from hotcold.runtime.files.jsonl import TEXT_FIELD, Skipped, documents, is_jsonl, reading

CHUNK_BYTES = 1 << 16


class TextEncoder(Protocol):
    """What the profiler needs of a tokenizer."""

    def encode(self, text: str) -> Sequence[int]:
        """Ids of a text, with the tokenizer's own template around them."""


def text_frame(tokenizer: TextEncoder) -> tuple[list[int], list[int]]:
    """The ids a tokenizer's template puts before a text, and those it puts behind."""
    empty, probe = list(tokenizer.encode("")), list(tokenizer.encode("a"))
    alike = (a == b for a, b in zip(empty, probe, strict=False))
    lead = next((i for i, same in enumerate(alike) if not same), min(len(empty), len(probe)))
    return empty[:lead], empty[lead:]


def token_windows(
    paths: Sequence[Path],
    tokenizer: TextEncoder,
    context: int,
    max_tokens: int | None = None,
    field: str = TEXT_FIELD,
    skipped: Skipped | None = None,
) -> Iterator[tuple[list[int], int]]:
    """Windows of at most `context` ids, and the bytes of text read until then.

    Every window starts with the ids the tokenizer's template puts first. The last window of a file
    or document, and of the limit, may be shorter.
    Files named .jsonl hold a document a line, its text in `field`; `skipped` is told of lines that
    hold none.

    Raises:
        ConfigError: no room for text, a file that cannot be read, or that is not UTF-8.
    """
    head, tail = text_frame(tokenizer)
    lead = len(head)
    room = context if max_tokens is None else min(context, max_tokens)
    if room <= lead:
        raise ConfigError(
            f"a window of {room} tokens has no room for text after the {lead} ids it starts with; "
            "raise the context or the token limit"
        )
    done = 0
    texts = _texts(paths, field, Skipped() if skipped is None else skipped)
    for window, read_bytes in _windows(texts, tokenizer, context, (head, tail)):
        cut = window if max_tokens is None else window[: max_tokens - done]
        if len(cut) > lead:
            yield cut, read_bytes
        done += len(cut)
        if max_tokens is not None and done + lead >= max_tokens:
            return


def _texts(paths: Sequence[Path], field: str, skipped: Skipped) -> Iterator[tuple[str, int, bool]]:
    before = 0
    for path in paths:
        size = file_bytes(path)  # checked before an open() could block
        if is_jsonl(path):
            for text, read_bytes in documents(path, field, skipped):
                yield text, before + read_bytes, True
        else:
            for text, read_bytes in _pieces(path):
                yield text, before + read_bytes, False
            yield "", before + size, True
        before += size


def _windows(
    texts: Iterator[tuple[str, int, bool]],
    tokenizer: TextEncoder,
    context: int,
    frame: tuple[list[int], list[int]],
) -> Iterator[tuple[list[int], int]]:
    head, tail = frame
    pending = list(head)
    for text, read_bytes, ends in texts:
        if text:
            ids = list(tokenizer.encode(text))
            pending += ids[len(head) : len(ids) - len(tail)]
        while len(pending) >= context:
            yield pending[:context], read_bytes
            pending = head + pending[context:]
        if ends:
            if len(pending) > len(head):
                yield pending, read_bytes
            pending = list(head)


def file_bytes(path: Path) -> int:
    """Size of a text file.

    Raises:
        ConfigError: it is missing, or something a read could block on.
    """
    with reading(path):
        if path.is_file():
            return path.stat().st_size
    raise ConfigError(f"text file {path} is missing or not a regular file")


def _pieces(path: Path) -> Iterator[tuple[str, int]]:
    offset, rest, held = 0, b"", ""
    with reading(path), open(path, "rb") as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            data = rest + chunk
            text, used = _decoded(path, data, offset, not chunk)
            offset, rest, held = offset + used, data[used:], held + text
            cut = len(held) if not chunk else held.rfind("\n") + 1 or held.rfind(" ")
            if cut > 0:
                yield held[:cut], offset
                held = held[cut:]
            elif len(held) > 4 * CHUNK_BYTES:  # there is no place to cut
                yield held, offset
                held = ""
            if not chunk:
                return


def _decoded(path: Path, data: bytes, offset: int, final: bool) -> tuple[str, int]:
    """Text of some bytes of a file from an offset on, and how many of them it takes."""
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"text file {path} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start}; convert it first"
        ) from None


def spread_windows(
    paths: Sequence[Path], tokenizer: TextEncoder, context: int, max_tokens: int
) -> list[list[int]]:
    """Windows of `context` ids taken evenly from all over the files, `max_tokens` in all.

    A long text is read only where its windows lie, so a sample of a large corpus costs what the
    sample does. The last window has what is left. A text that is not long enough for that, and
    JSON lines, are read from the start.

    Raises:
        ConfigError: as token_windows, or the files hold no text at all.
    """
    sizes = [file_bytes(path) for path in paths]
    count = max(1, -(-max_tokens // context))
    found: list[list[int]] = []
    plain = not any(is_jsonl(path) for path in paths)
    if plain and sum(sizes) >= _SPARSE * count * context * _BYTES_PER_ID:
        for index in range(count):
            place = (2 * index + 1) * sum(sizes) // (2 * count)
            which = 0
            while place >= sizes[which]:
                place -= sizes[which]
                which += 1
            ids = list(tokenizer.encode(_text_at(paths[which], place, context * _BYTES_PER_ID)))
            if len(ids) >= context:
                found.append(ids[: min(context, max_tokens - index * context)])
    if not found:
        found = [window for window, _ in token_windows(paths, tokenizer, context, max_tokens)]
    if not found:
        raise ConfigError(f"there is no text in {', '.join(map(str, paths)) or 'no files'}")
    return found


_SPARSE = 2  # so many times the text that the windows need: else it is read as a whole
_BYTES_PER_ID = 8  # generous: a window is cut to its length afterwards


def _text_at(path: Path, offset: int, length: int) -> str:
    with reading(path), open(path, "rb") as file:
        file.seek(offset)
        data = file.read(length)
    start = 0
    while start < min(4, len(data)) and data[start] & 0xC0 == 0x80:
        start += 1  # the rest of a character that began before
    text, _ = _decoded(path, data[start:], offset + start, False)
    line = text.find("\n", 0, len(text) // 4)
    return text[(line if line >= 0 else text.find(" ")) + 1 :]
