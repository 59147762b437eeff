"""One generation: a prompt in, tokens with their text out.

What happens between the ids the native loop samples and the `Token`s a user sees: incremental
decoding, stop strings, the reason it ended, and its figures. Used by the engine (any transport) and
by `LocalSession`. Sampling itself is in native/ops/sample.c.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path

from hotcold.native.errors import ConfigError
from hotcold.native.options.sampling import Top
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.text.tokenizer import StreamDecoder, Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Token:
    """One generated token.

    Args:
        text: the text that became certain with it; the texts of a generation concatenate to its
            text. May be empty: half a character, an end-of-sequence token.
        logprob: log probability under the model, before temperature and cut-offs.
        top: the `Sampling.logprobs` likeliest ids in its place, best first, with their log
            probabilities.
        time_ns: when it was drawn, by the monotonic clock; 0: not known.
    """

    id: int
    text: str
    logprob: float
    top: Top = ()
    time_ns: int = 0


@dataclass(frozen=True)
class GenerationStats:
    """Figures of one finished generation.

    Args:
        prompt_s: seconds from the first pass to the end of the prompt.
        decode_s: seconds from there to the last token.
        bytes: weight and KV bytes all actors read while decoding.
        finish: "length", "eos" or "stop".
        begin_ns: of CLOCK_MONOTONIC where the actors run, when the first pass began.
        reused_tokens: of the prompt's, those whose keys and values were there already; 0 where the
            generation outlived a loss or a plan.
    """

    prompt_tokens: int
    new_tokens: int
    prompt_s: float
    decode_s: float
    bytes: int
    finish: str
    begin_ns: int = 0
    reused_tokens: int = 0

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens that were computed, over the seconds they took."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prompt_s if self.prompt_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode passes over the seconds they took; the first token comes with the prompt."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def gb_per_s(self) -> float:
        """Bytes read while decoding over the seconds it took, in 1e9 bytes a second."""
        return self.bytes / self.decode_s / 1e9 if self.decode_s > 0 else 0.0


class TextCodec:
    """A model's tokenizer, where its bundle has one, and what ends its texts.

    Without a tokenizer's files prompts must be token ids, and tokens have no text.

    Raises:
        CheckpointError: a tokenizer that cannot be read.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder, self._spec = folder, spec
        self._tokenizer: Tokenizer | None = None
        if Tokenizer.in_folder(folder):
            self._tokenizer = Tokenizer.load(folder, spec.vocab_size)
        named = self._tokenizer.eos_ids if self._tokenizer is not None else ()
        self.eos_ids: tuple[int, ...] = spec.eos_ids or named
        head = self._tokenizer.encode("")[:1] if self._tokenizer is not None else ()
        self._bos_ids = {*spec.bos_ids, *head} - set(self.eos_ids)

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self._folder

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: there is none.
        """
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self._folder, self._spec.vocab_size)
        return self._tokenizer

    def ids(self, prompt: str | Sequence[int], context: int, special: bool = False) -> list[int]:
        """Ids of a prompt, checked; warns where they are probably not what was meant.

        With `special`, control tokens in a text ("</s>") are read as such; else they are text.

        Raises:
            ConfigError: an empty prompt, one longer than the context, an id outside the vocabulary.
            CheckpointError: text for a model without a tokenizer.
        """
        ids = self.check(prompt, context, special)
        if isinstance(prompt, str) and not special:
            known = self.tokenizer.control_tokens(prompt)
            if known:
                logger.warning(
                    "the prompt holds %s, which is taken as text; to have control tokens parsed, "
                    "give --special (in Python: special=True)",
                    ", ".join(map(repr, known)),
                )
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in self._bos_ids:
            logger.warning(
                "the prompt begins with token %d, which begins a text, twice: the tokenizer puts "
                "one before every text, leave out the other",
                ids[0],
            )
        return ids

    def check(self, prompt: str | Sequence[int], context: int, special: bool = False) -> list[int]:
        """The same without a warning."""
        if isinstance(prompt, str):
            if not prompt:
                raise ConfigError("the prompt is empty; give at least one character")
            ids = self.tokenizer.encode(prompt, special)
        else:
            try:
                if isinstance(prompt, (bytes, bytearray)):
                    raise TypeError
                ids = [index(id_) for id_ in prompt]
            except TypeError:
                raise ConfigError(
                    f"the prompt {prompt!r:.80} is neither one text nor token ids; give one prompt"
                ) from None
        if not ids:
            raise ConfigError("the prompt has no tokens; give at least one")
        spec = self._spec
        if len(ids) > context:
            way_out = (
                f"shorten it or launch with a context up to {spec.max_context}"
                if context < spec.max_context
                else "shorten it; that is all this model was made for"
            )
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, the context holds {context}; {way_out}"
            )
        bad = next((id_ for id_ in ids if not 0 <= id_ < spec.vocab_size), None)
        if bad is not None:
            raise ConfigError(f"token id {bad} is outside the vocabulary of {spec.vocab_size}")
        return ids

    def text_of(self, token_id: int) -> str:
        """Text of one token inside a text; none without a tokenizer."""
        return "" if self._tokenizer is None else self._tokenizer.text_of(token_id)

    def stream(self, sampling: Sampling) -> "TokenStream":
        """What turns the ids sampled for a request into Tokens."""
        decoder = self._tokenizer.stream() if self._tokenizer is not None else None
        return TokenStream(decoder, sampling, self.eos_ids)


class TokenStream:
    """Turns sampled ids into Tokens, one for each id, and knows when the text has ended.

    A token waits while its text could still turn out to be the beginning of a stop string, or while
    its character is incomplete.
    """

    def __init__(
        self, decoder: StreamDecoder | None, sampling: Sampling, eos_ids: Sequence[int]
    ) -> None:
        self._decoder, self._stop = decoder, sampling.stop
        self._eos = () if sampling.ignore_eos else tuple(eos_ids)
        self._waiting: list[Token] = []
        self.finish: str | None = None
        self.count = 0

    def push(self, id_: int, logprob: float, top: Top = (), time_ns: int = 0) -> list[Token]:
        """Tokens that became certain with this id; none after the end."""
        if self.finish is not None:
            return []
        self.count += 1
        if id_ in self._eos:
            self.finish = "eos"
            return [*self.flush(), Token(id_, "", logprob, top, time_ns)]
        if self._decoder is None:
            return [Token(id_, "", logprob, top, time_ns)]
        self._waiting.append(Token(id_, self._decoder.push(id_), logprob, top, time_ns))
        text = "".join(token.text for token in self._waiting)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.finish = "stop"
            return self._release(min(found))
        if self._may_begin_stop(text):
            return []
        return self._release(len(text), keep_open=self._decoder.holds)

    def flush(self) -> list[Token]:
        """What still waited when the generation ended without a stop string."""
        rest = self._decoder.flush() if self._decoder is not None else ""
        if rest and self._waiting:
            last = self._waiting[-1]
            self._waiting[-1] = replace(last, text=last.text + rest)
        return self._release(sum(len(token.text) for token in self._waiting))

    def _release(self, length: int, keep_open: bool = False) -> list[Token]:
        """Hand out the waiting tokens with the first length characters of their text.

        keep_open: tokens at the end without text yet go on waiting for it.
        """
        ready = len(self._waiting)
        while keep_open and ready and not self._waiting[ready - 1].text:
            ready -= 1
        out = []
        for token in self._waiting[:ready]:
            out.append(replace(token, text=token.text[:length]))
            length = max(0, length - len(token.text))
        self._waiting = self._waiting[ready:]
        return out

    def _may_begin_stop(self, text: str) -> bool:
        return any(
            text.endswith(stop[:n])
            for stop in self._stop
            for n in range(1, min(len(stop), len(text) + 1))
        )
