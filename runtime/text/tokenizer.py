"""Tokenizer: text to token ids and back, by the `tokenizers` library, and text token by token.

Reads tokenizer.json, or the older forms of tokenizer_files.py. Chat templates are in chat.py.
"""

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsInt

import tokenizers

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints.bundle import source_folder
from hotcold.runtime.model.checkpoints.tokenizer_files import (
    has_tokenizer,
    no_tokenizer,
    read_tokenizer,
    special_text,
)

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
UNKNOWN = ("<unk>", "[UNK]")  # what text without a token becomes, so no control token
_HELD = 8  # tokens behind the last whole character: no character has so many bytes


class Tokenizer:
    """A checkpoint's tokenizer; make it with `load`. A `vocab_size` of None is not checked.

    Attributes:
        eos_ids: ids of the tokens the tokenizer's files call eos. What ends a generation is
            `ModelSpec.eos_ids`; this is for checkpoints that say it nowhere else.
        anchor: the token of the byte "A" where single bytes are tokens (`<0x41>`), else None.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        vocab_size: int | None = None,
        eos_texts: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()  # some files carry a limit: prompts would be cut silently
        self._tokenizer.no_padding()
        self._vocab_size = vocab_size
        self._lock = threading.Lock()  # whether control tokens are parsed is the library's state
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {i: token.content for i, token in added.items() if token.special}
        self._by_name = {name: i for i, name in self._special.items()}
        longest_first = sorted(self._by_name, key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        ids = (self._tokenizer.token_to_id(text) for text in eos_texts)
        self.eos_ids: tuple[int, ...] = tuple(i for i in ids if i is not None)
        anchor = self._tokenizer.token_to_id("<0x41>")
        falls_back = anchor is not None and self.decode_window([anchor]) == "A"
        self.anchor: int | None = anchor if falls_back else None

    @staticmethod
    def in_folder(folder: Path) -> bool:
        """Whether a folder has a tokenizer, readable or not."""
        return has_tokenizer(folder)

    @classmethod
    def load(cls, folder: Path | str, vocab_size: int | None = None) -> "Tokenizer":
        """Read the tokenizer of a bundle or checkpoint folder.

        A prompt that needs more tokens than `vocab_size`, the rows of the embedding, is refused.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        folder = Path(folder)
        if not has_tokenizer(folder):
            raise no_tokenizer(source_folder(folder))
        try:
            eos = special_text(folder, "eos_token")
            return cls(read_tokenizer(folder), vocab_size, () if eos is None else (eos,))
        except CheckpointError:
            read_tokenizer(source_folder(folder))  # to name the user's own file, where it is that
            raise

    @property
    def vocab_size(self) -> int:
        """Tokens it knows, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, special: bool = False, framed: bool = True) -> list[int]:
        """Token ids of a text; `framed`: with the tokenizer's template (a Llama's `<s>` first).

        With `special`, control tokens in it ("</s>") are read as such; else they are text like any.

        Raises:
            ConfigError: no text, or one that cannot be encoded, or tokens the model has not.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a prompt must be text, not {type(text).__name__}; pass a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"the text holds {text[error.start]!a}, half of a surrogate pair, at character "
                f"{error.start}; that is no character and cannot be encoded, remove it"
            ) from error
        return self._checked(self._encoded(text, special, framed))

    def _encoded(self, text: str, special: bool, framed: bool = True) -> list[int]:
        try:
            with self._lock:
                self._tokenizer.encode_special_tokens = not special
                encoding = self._tokenizer.encode(text, add_special_tokens=framed)
            ids = [int(i) for i in encoding.ids]
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(
                f"the text of {len(text)} characters cannot be encoded ({str(error)[:200]}); the "
                "tokenizer has no token for part of it"
            ) from error
        if not special and self._special.keys() & set(ids):
            self._check_plain(ids, encoding.special_tokens_mask)
        return ids

    def _checked(self, ids: list[int]) -> list[int]:
        highest = max(ids, default=0)
        if self._vocab_size is not None and highest >= self._vocab_size:
            raise ConfigError(
                f"the text needs token {highest}, the model has {self._vocab_size}; its tokenizer "
                "belongs to another model"
            )
        return ids

    def encode_rendered(self, text: str, guard: str) -> list[int]:
        """Ids of a chat template's text, without the tokenizer's own template around it.

        Control tokens in it are read as such but for those broken by a `guard`, which is taken out.

        Raises:
            ConfigError: it cannot be encoded, or needs tokens the model has not.
        """
        ids: list[int] = []
        for part in self._names.split(text) if self._special else [text]:
            at = self._by_name.get(part)
            plain = part.replace(guard, "")
            if at is not None:
                ids.append(at)
            elif plain:
                ids += self._encoded(plain, special=False, framed=False)
        return self._checked(ids)

    def _check_plain(self, ids: Sequence[int], template: Sequence[int]) -> None:
        for id_, added in zip(ids, template, strict=True):
            name = self._special.get(id_)
            if name is not None and not added and name not in UNKNOWN:
                raise ConfigError(
                    f"the text holds {name!r}, which this tokenizer knows as a control token only; "
                    "remove it, or have control tokens parsed (--special, special=True)"
                )

    def control_tokens(self, text: str) -> list[str]:
        """Control tokens whose names stand in a text."""
        return [name for name in self._special.values() if name in text]

    def decode(self, ids: Sequence[SupportsInt]) -> str:
        """Text of token ids, special tokens left out; unknown ids have no text.

        Bytes that are part of no character become U+FFFD; where single bytes are tokens, one each.

        Raises:
            ConfigError: an id is no token id at all.
        """
        try:
            numbers = [int(i) for i in ids]
            if self.anchor is None or not any(self.byte(i) is not None for i in numbers):
                return self.decode_window(numbers)
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"these are no token ids ({str(error)[:200]}); ids are integers from 0 up"
            ) from error
        stream = self.stream()
        return "".join([stream.push(i) for i in numbers]) + stream.flush()

    def decode_window(self, ids: Sequence[int]) -> str:
        """Text of a few ids as the library has it: one wrong byte spoils all bytes beside it."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def text_of(self, token_id: int) -> str:
        """Text of one token inside a text: its space before it stays; a control token's name."""
        alone, twice = (self.decode_window([token_id] * count) for count in (1, 2))
        return self._special.get(token_id, twice[len(alone) :])

    def has_text(self, token_id: int) -> bool:
        """Whether decode looks at this token: it is neither special nor unknown."""
        return token_id not in self._special and self._tokenizer.id_to_token(token_id) is not None

    def byte(self, token_id: int) -> int | None:
        """The byte that a token stands for (`<0xE4>`) in a tokenizer with byte fallback."""
        if self.anchor is None:
            return None
        found = BYTE_TOKEN.match(self._tokenizer.id_to_token(token_id) or "")
        return int(found[1], 16) if found else None

    def stream(self) -> "StreamDecoder":
        """A decoder for one generation."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text token by token: what push and flush return, joined, is decode() of all ids.

    Only what may still become a character is held back: at most three bytes. A push costs a window
    of a few tokens, however long the text.

    Why two offsets: decoders strip the first space of what they are given and join by context, so a
    token is decoded behind the tokens before it, and what those gave alone is cut off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # tokens of the last emitted piece, then those held back
        self._emitted = 0  # how many of them were emitted whole
        self._before = ""  # what was emitted of the text they give alone
        self._run: list[int] = []  # byte tokens that began a character
        self._bytes = b""  # their bytes
        self._open = False  # the text of _ids ends in what may become a character

    @property
    def holds(self) -> bool:
        """Whether text is held back that the next tokens may complete."""
        return bool(self._run) or self._open

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain, often ''."""
        if not self._tokenizer.has_text(token_id):
            return ""
        byte = self._tokenizer.byte(token_id)
        if byte is None:
            return self._lose(len(self._run)) + self._add([int(token_id)])
        self._run.append(int(token_id))
        self._bytes += bytes([byte])
        text = ""
        while self._bytes:
            try:
                self._bytes.decode("utf-8")
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data":
                    break
                text += self._lose(error.end)
                continue
            text += self._add(self._run)
            self._run, self._bytes = [], b""
        return text

    def flush(self) -> str:
        """The text held back, at the end of the generation; nothing when called again."""
        return self._lose(len(self._run)) + self._rest()

    def _add(self, ids: list[int]) -> str:
        self._ids += ids
        text = self._tokenizer.decode_window(self._ids)
        self._open = text.endswith(REPLACEMENT)
        certain = text.removesuffix(REPLACEMENT)
        new, self._before = certain[len(self._before) :], certain
        if self._open:
            self._shorten()
            return new
        piece = self._tokenizer.decode_window(self._ids[self._emitted :])
        if piece:  # else a later window would start with nothing to strip
            del self._ids[: self._emitted]
            self._before = piece
        self._emitted = len(self._ids)
        return new

    def _shorten(self) -> None:
        """Drop what can no longer be part of the last character from a window that ends in one."""
        if len(self._ids) - self._emitted <= _HELD:
            return
        last = self._ids[-_HELD // 2 :]
        text = self._tokenizer.decode_window(last)
        if text.endswith(REPLACEMENT):
            self._ids, self._emitted = last, 0
            self._before = text.removesuffix(REPLACEMENT)

    def _rest(self) -> str:
        """What the window still holds back, given up."""
        text = self._tokenizer.decode_window(self._ids)
        new, self._before = text[len(self._before) :], text
        self._emitted, self._open = len(self._ids), False
        return new

    def _lose(self, count: int) -> str:
        """Give up the first bytes of a run: they are part of no character."""
        if not count:
            return ""
        text = self._rest() + REPLACEMENT * count
        self._run, self._bytes = self._run[count:], self._bytes[count:]
        assert self._tokenizer.anchor is not None  # noqa: S101 - there are byte tokens
        # Not the lost bytes: beside them the library would spoil the next, whole character.
        self._ids, self._emitted = [self._tokenizer.anchor], 1
        self._before = self._tokenizer.decode_window(self._ids)
        return text
