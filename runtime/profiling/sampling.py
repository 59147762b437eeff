"""Text that the model writes itself, to be profiled over where no text of its kind is at hand.

Documents are sampled one after the other, each from the ids the tokenizer puts before a text, with
a seed of its own, until they have so many tokens together. They are a file of JSON lines like any
other text, so that the same text can be counted again; an interrupted run goes on after its last
whole line.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.runtime.config import EngineConfig, Sampling
from hotcold.runtime.errors import ConfigError
from hotcold.runtime.jsonl import TEXT_FIELD
from hotcold.runtime.windows import text_frame

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
        """In words."""
        return f"sampled from the model itself (seed {self.seed}, temperature {self.temperature})"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


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
    from hotcold.policies.placement.greedy import Greedy
    from hotcold.runtime.deployment import deploy, prepare_model, solve
    from hotcold.runtime.session import LocalSession

    prepared, before, empty = prepare_model(config), done, 0
    with LocalSession(deploy(prepared, solve(prepared, Greedy()))) as session, open(path, "a") as f:
        spec = prepared.bundle.spec
        head = text_frame(session.text.tokenizer)[0] or list(spec.bos_ids)
        room = prepared.context - max(1, len(head))
        if room < 1:
            raise ConfigError(f"a context of {prepared.context} tokens has no room for a text")
        while done < wish.tokens:
            seed = (wish.seed + documents * _SEED_STEP) % 2**63
            prompt = head or [int(np.random.default_rng(seed).integers(spec.vocab_size))]
            sampling = Sampling(max_tokens=room, temperature=wish.temperature, seed=seed)
            found = list(session.generate(prompt, sampling))
            text = "".join(token.text for token in found)
            f.write(json.dumps({TEXT_FIELD: text, "tokens": len(found), "seed": seed}) + "\n")
            f.flush()
            documents, done = documents + 1, done + len(found)
            empty = 0 if text.strip() else empty + 1
            if empty == MAX_EMPTY:
                raise ConfigError(
                    f"the model wrote {MAX_EMPTY} documents without a text; profile it with --text"
                )
            if progress is not None:
                progress(done, min(1.0, done / wish.tokens))
    return done - before


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
