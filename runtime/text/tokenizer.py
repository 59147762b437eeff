"""Tokenizer: text to token ids and back, by the `tokenizers` library, and text token by token.

Reads tokenizer.json of a bundle or checkpoint, or the vocab.json and merges.txt of older ones. Used
by the driver's side of generation and by offline commands that read text. Chat templates are not
supported.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsInt

import tokenizers

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.json_files import read_json_object, regular_file
from hotcold.runtime.model.checkpoints.byte_level import (
    VOCAB,
    byte_level_tokenizer,
    has_byte_level,
    special_text,
)
from hotcold.runtime.model.checkpoints.convert import TOKENIZER

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


class Tokenizer:
    """A checkpoint's tokenizer; make it with `load`.

    Args:
        tokenizer: the library's tokenizer.
        vocab_size: rows of the model's embedding; None: not checked.
        eos_texts: tokens that end a text.

    Attributes:
        eos_ids: ids of the tokens the tokenizer's files call eos. What ends a generation is
            `ModelSpec.eos_ids`; this is for checkpoints that say it nowhere else.
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
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(i for i, token in added.items() if token.special)
        ids = (self._tokenizer.token_to_id(text) for text in eos_texts)
        self.eos_ids: tuple[int, ...] = tuple(i for i in ids if i is not None)

    @staticmethod
    def in_folder(folder: Path) -> bool:
        """Whether a folder has a tokenizer, readable or not."""
        return (folder / TOKENIZER).exists() or has_byte_level(folder)

    @classmethod
    def load(cls, folder: Path | str, vocab_size: int | None = None) -> "Tokenizer":
        """Read the tokenizer of a bundle or checkpoint folder.

        Args:
            folder: holds tokenizer.json, or vocab.json and merges.txt.
            vocab_size: rows of the model's embedding; a prompt that needs more is refused.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        folder = Path(folder)
        path, read = folder / TOKENIZER, None
        if not regular_file(path) and has_byte_level(folder):
            path, read = folder / VOCAB, byte_level_tokenizer
        if not regular_file(path):
            raise CheckpointError(
                f"{folder} has no {TOKENIZER}, so text cannot be turned into tokens; add the one "
                "of the model, or give token ids instead of text"
            )
        read_json_object(path)  # says what is wrong with a file that is no JSON
        try:
            tokenizer = read(folder) if read else tokenizers.Tokenizer.from_file(str(path))
            eos = special_text(folder, "eos_token")
            return cls(tokenizer, vocab_size, () if eos is None else (eos,))
        except (KeyboardInterrupt, SystemExit, CheckpointError):
            raise
        except BaseException as error:  # a panic inside the library derives from BaseException only
            raise CheckpointError(
                f"{path} is not a tokenizer the tokenizers library can read ({str(error)[:200]}); "
                "restore the file"
            ) from error

    @property
    def vocab_size(self) -> int:
        """Tokens it knows, added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the tokenizer's own template (a Llama's `<s>` first).

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
        try:
            ids = [int(i) for i in self._tokenizer.encode(text).ids]
        except Exception as error:  # the library raises plain Exception
            raise ConfigError(
                f"the text of {len(text)} characters cannot be encoded ({str(error)[:200]}); the "
                "tokenizer has no token for part of it"
            ) from error
        highest = max(ids, default=0)
        if self._vocab_size is not None and highest >= self._vocab_size:
            raise ConfigError(
                f"the text needs token {highest}, the model has {self._vocab_size}; its tokenizer "
                "belongs to another model"
            )
        return ids

    def decode(self, ids: Sequence[SupportsInt]) -> str:
        """Text of token ids, special tokens left out; unknown ids have no text.

        Raises:
            ConfigError: an id is no token id at all.
        """
        try:
            return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"these are no token ids ({str(error)[:200]}); ids are integers from 0 up"
            ) from error

    def has_text(self, token_id: int) -> bool:
        """Whether decode looks at this token: it is neither special nor unknown."""
        return token_id not in self._special and self._tokenizer.id_to_token(token_id) is not None

    def is_byte(self, token_id: int) -> bool:
        """Whether a token is one raw byte (`<0xE4>`), as tokenizers with byte fallback have."""
        text = self._tokenizer.id_to_token(token_id)
        return text is not None and BYTE_TOKEN.match(text) is not None

    def stream(self) -> "StreamDecoder":
        """A decoder for one generation."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text token by token: what push and flush return, joined, is decode() of all ids.

    Text is held back while it may still change: a character whose bytes are not complete, and a run
    of byte tokens, which a decoder with byte fallback judges as a whole.

    Why two offsets: decoders strip the first space of what they are given and join by context, so a
    token is decoded behind the tokens before it, and what those gave alone is cut off.

    Args:
        tokenizer: whose decode() to follow.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # tokens of the last emitted piece, then those held back
        self._emitted = 0  # how many of them were emitted
        self._before = ""  # what the emitted ones give alone

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain, often ''."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._ids.append(int(token_id))
        if self._tokenizer.is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._ids)
        if text.endswith(REPLACEMENT):
            return ""
        new = text[len(self._before) :]
        piece = self._tokenizer.decode(self._ids[self._emitted :])
        if piece:  # else a later window would start with nothing to strip
            del self._ids[: self._emitted]
            text = piece
        self._emitted, self._before = len(self._ids), text
        return new

    def flush(self) -> str:
        """The text held back, at the end of the generation; nothing when called again."""
        text = self._tokenizer.decode(self._ids)
        new = text[len(self._before) :]
        self._emitted, self._before = len(self._ids), text
        return new
