"""Text that the model writes itself, to profile where no suitable text is at hand.

Documents are sampled one after the other, each from the ids that the tokenizer puts before a text
and with its own seed, until there are enough tokens. They form a file of JSON lines like any other
text, so that the same text can be counted again; an interrupted run resumes after its last whole
line.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.runtime.files.jsonl import TEXT_FIELD
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.text.generation import Token
from hotcold.runtime.text.windows import text_frame

if TYPE_CHECKING:
    from hotcold.runtime.engine.executors.session import LocalSession

FILE_NAME = "sampled.jsonl"
MAX_EMPTY = 64  # documents in a row without a text: the model writes none
_SEED_STEP = 1_000_003  # between the seeds of documents: those of neighbouring seeds differ


@dataclass(frozen=True)
class SelfText:
    """How a model samples its own text.

    Args:
        tokens: to sample in all; the last document may pass it.
        temperature: of the sampling; 0 would write the same document again and again.
        seed: of the first document.
    """

    tokens: int = 32768
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 100:
            raise ConfigError(
                f"temperature {self.temperature} must be above 0 and at most 100 to sample text"
            )

    def __str__(self) -> str:
        return f"sampled from the model itself (seed {self.seed}, temperature {self.temperature})"


def sample_text(
    config: EngineConfig,
    wish: SelfText,
    path: Path,
    progress: Callable[[int, float], None] | None = None,
) -> int:
    """Write documents to a file of JSON lines until there are enough; go on where it ends.

    Args:
        config: the model and how to run it.
        wish: see SelfText.
        path: the file; lines that are there already count.
        progress: called with the tokens so far and their share.

    Returns:
        Tokens sampled by this call.

    Raises:
        ConfigError: the model writes nothing, or its context has no room for a text.
    """
    documents, done = _done_before(path)
    if done >= wish.tokens:
        return 0
    from hotcold.runtime.engine.deployment import deploy, solve
    from hotcold.runtime.engine.executors.session import LocalSession
    from hotcold.runtime.engine.prepare import prepare_model

    prepared, before = prepare_model(config), done
    with LocalSession(deploy(prepared, solve(prepared, "greedy"))) as session, open(path, "a") as f:
        writer = _Writer(session, wish)
        while done < wish.tokens:
            line, tokens = writer.document(documents)
            f.write(line)
            f.flush()
            documents, done = documents + 1, done + tokens
            if progress is not None:
                progress(done, min(1.0, done / wish.tokens))
    return done - before


class _Writer:
    """Samples documents in a session.

    Raises:
        ConfigError: its context has no room for a text.
    """

    def __init__(self, session: "LocalSession", wish: SelfText) -> None:
        spec, context = session.deployment.spec, session.deployment.context
        self._session, self._wish, self._vocab = session, wish, spec.vocab_size
        self._head = text_frame(session.text.tokenizer)[0] or list(spec.bos_ids)
        self._room = context - max(1, len(self._head))
        self._empty = 0
        if self._room < 1:
            raise ConfigError(f"a context of {context} tokens has no room for a text")

    def document(self, index: int) -> tuple[str, int]:
        """The JSON line of a document, and its tokens.

        Raises:
            ConfigError: the last MAX_EMPTY of them had no text.
        """
        seed = (self._wish.seed + index * _SEED_STEP) % 2**63
        prompt = self._head or [int(np.random.default_rng(seed).integers(self._vocab))]
        sampling = Sampling(max_tokens=self._room, temperature=self._wish.temperature, seed=seed)
        stream, found = self._session.text.stream(sampling), list[Token]()
        for id_, logprob in self._session.sample(prompt, sampling):  # to its end: one at a time
            found += stream.push(id_, logprob)
        found += stream.flush()
        text = "".join(token.text for token in found)
        self._empty = 0 if text.strip() else self._empty + 1
        if self._empty == MAX_EMPTY:
            raise ConfigError(
                f"the model wrote {MAX_EMPTY} documents without a text; profile it with --text"
            )
        line = {TEXT_FIELD: text, "tokens": len(found), "seed": seed}
        return json.dumps(line) + "\n", len(found)


def _done_before(path: Path) -> tuple[int, int]:
    """Documents and tokens of the whole lines in a file; what is behind them is cut off."""
    if not path.exists():
        return 0, 0
    documents = tokens = kept = 0
    data = path.read_bytes()
    for line in data.splitlines(keepends=True):
        try:
            count = int(json.loads(line)["tokens"]) if line.endswith(b"\n") else None
        except (ValueError, KeyError, TypeError):
            count = None
        if count is None:
            break
        documents, tokens, kept = documents + 1, tokens + count, kept + len(line)
    if kept < len(data):
        with open(path, "r+b") as file:
            file.truncate(kept)
    return documents, tokens
