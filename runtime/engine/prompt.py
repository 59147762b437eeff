"""How a GPU executor computes a prompt: sparse in blocks, or dense in one pass over the model.

The sparse form takes blocks of `max_batch` tokens through both executors. The dense form
multiplies whole matrices on the GPU and streams through what is not resident
(native/cuda/prompt/prompt.cu); its price hardly depends on the number of tokens, so it pays from
some length on. That length is measured once for a plan on a machine, on the tokens of the first
prompt that is long enough to ask, and kept, so that later runs of the plan take the same form and
give the same bits. Both forms apply the same proposals of the predictor, so the tokens are the same
within rounding.

Both serve every model and predictor that the GPU's kernels serve.

Called by gpu.py (memory) and executors/ (the choice). Without a GPU all prompts are sparse.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hotcold.native.gpu import nvml
from hotcold.native.gpu.cuda_plugin import cache_folder

logger = logging.getLogger(__name__)

ROWS = (512, 256, 128, 64)  # tokens of a dense pass, the most that memory allows
MEMORY_SHARE = 1 / 50  # of the budget that `auto` gives to the dense form, at most
NEVER = 1 << 30


def choose_rows(form: str, context: int, budget: int, need: Callable[[int], int]) -> int:
    """Tokens of a dense pass of a form ("auto", "dense", "sparse"); 0: there is none.

    budget: bytes of GPU memory. need: bytes of an executor with dense passes of so many tokens.
    """
    if form == "sparse" or form == "auto" and context <= ROWS[-1]:
        return 0
    for rows in ROWS:
        fitting = min(rows, context)
        if need(fitting) - need(0) <= MEMORY_SHARE * budget:
            return fitting
    return min(ROWS[-1], context) if form == "dense" else 0


@dataclass(frozen=True)
class Switch:
    """From which length on prompts are dense; seconds of a sparse block and of a dense pass."""

    tokens: int
    sparse_s: float
    dense_s: float

    @classmethod
    def measured(cls, sparse_s: float, dense_s: float, block: int, rows: int) -> "Switch":
        """The first length whose blocks take longer than a dense pass; NEVER where none does."""
        tokens = block * int(dense_s / sparse_s) + 1
        tokens = max(tokens, 2 * block + 1)
        return cls(tokens if tokens <= rows else NEVER, sparse_s, dense_s)

    def describe(self, block: int, rows: int) -> str:
        """A line for people."""
        times = (
            f"a block of {block} tokens takes {self.sparse_s * 1e3:.1f} ms sparse, a dense pass of "
            f"up to {rows} {self.dense_s * 1e3:.1f} ms"
        )
        if self.tokens >= NEVER:
            return f"prompts stay sparse: {times}"
        return f"prompts of {self.tokens} tokens and more go dense: {times}"


def dense_tokens(given: int, switch: int, rows: int) -> int:
    """How many leading tokens of a prompt go through dense passes of at most `rows`.

    A rest that is shorter than the switch point goes sparse behind them.
    """
    if given < switch:
        return 0
    rest = given % rows
    return given if rest == 0 or rest >= switch else given - rest


class PromptForm:
    """The choice for each prompt of one GPU executor, of form "auto", "dense" or "sparse".

    rows: tokens of a dense pass, 0: none; block: of a sparse one. identity: what decides the times.
    """

    def __init__(self, form: str, rows: int, block: int, identity: str) -> None:
        self.form, self.rows, self.block = form if rows else "sparse", rows, block
        self.switch: Switch | None = None
        names = " ".join(gpu.name for gpu in nvml.gpus())
        key = f"{identity} {rows} {block} {names}"
        self._key = hashlib.sha256(key.encode()).hexdigest()[:16]

    def dense_tokens(self, given: int, seconds: Callable[[int, int], float]) -> int:
        """Leading tokens of a prompt of `given` that go dense.

        seconds: runs so many tokens of the prompt, so many of them dense; takes how long.
        """
        if self.form == "sparse":
            return 0
        if self.form == "dense":
            return given
        if given <= 2 * self.block:
            return 0
        if self.switch is None:
            self.switch = self._load() or self._measure(given, seconds)
        return dense_tokens(given, self.switch.tokens, self.rows)

    def _measure(self, given: int, seconds: Callable[[int, int], float]) -> Switch:
        """Two runs of each form on the prompt at hand; the better one counts."""
        most = min(given, self.rows)
        sparse_s = min(seconds(self.block, 0) for _ in range(2))
        dense_s = min(seconds(most, most) for _ in range(2))
        found = Switch.measured(sparse_s, dense_s, self.block, self.rows)
        logger.warning("%s", found.describe(self.block, self.rows))
        self._save(found)
        return found

    def _path(self) -> Path:
        return cache_folder() / f"prompt-{self._key}.json"

    def _load(self) -> Switch | None:
        """What an earlier run of the plan measured; anything else than that is measured again."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            kept = json.loads(self._path().read_text())
            return Switch(int(kept["tokens"]), float(kept["sparse_s"]), float(kept["dense_s"]))
        return None

    def _save(self, found: Switch) -> None:
        path = self._path()
        with suppress(OSError):  # a cache: what cannot be kept is measured again
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(vars(found)))
            fresh.replace(path)
