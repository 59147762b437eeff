"""The options of a training, checked once: shape, text, sparsity and length.

Built by the script from its options and passed to everything else in this package. `plan` is the
part that must be the same when an interrupted training resumes.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hotcold.native.errors import ConfigError, HotcoldError

DTYPES = ("float16", "bfloat16", "float32")
WORK = ".training"  # folder inside --out; gone when all is done


class TrainingError(HotcoldError, RuntimeError):
    """A training that cannot go on: its loss is no number, or its result does not fit a dtype."""


# What may be asked for: lowest and highest value.
LIMITS: dict[str, tuple[float, float]] = {
    "layers": (1, 512),
    "d_model": (8, 65536),
    "ffn": (8, 1 << 20),
    "heads": (1, 1024),
    "vocab": (260, 1 << 20),
    "context": (8, 1 << 16),
    "steps": (1, 10**9),
    "minutes": (0.05, 10**6),
    "batch": (1, 1 << 16),
    "rows": (1, 1 << 16),
    "rate": (1e-8, 1.0),
    "decay": (0.0, 10.0),
    "sparsity": (0.0, 0.995),
    "contrast": (0.0, 2.0),
    "guard": (0.0, 0.05),
    "distill": (0.0, 1.0),
    "save_every": (1, 10**9),
    "report_tokens": (64, 10**9),
    "seed": (0, 2**31 - 1),
    "threads": (1, 1024),
}


@dataclass(frozen=True)
class Recipe:
    """One training, asked for in full.

    Args:
        texts: UTF-8 files to learn from.
        out: folder of the result.
        validation: UTF-8 files to report on; none: one window in 20 of the texts, held back.
        source: Hugging Face folder of a Llama to start from, SwiGLU or ReLU; None: from scratch.
        activation: "relu"; "silu" makes a dense model, something to try `source` with.
        layers, d_model, ffn, heads, vocab: the shape, where there is no source. 0 heads: one for
            each 32 elements of d_model.
        context: tokens of a window.
        steps: updates; 0: as many as fit into `minutes`.
        minutes: time for the updates, used to choose `steps` once, at the start.
        batch: windows of an update.
        rows: windows computed at a time, for small memories; 0: the whole batch.
        rate: highest learning rate; 0: 2e-3 from scratch, 3e-4 from a source.
        decay: weight decay of the matrices.
        sparsity: wanted share of neurons that stay silent for a token; 0: no charge at all.
        contrast: how much less hot neurons are charged; 0: all alike.
        guard: a neuron that fires for a smaller share of tokens than this is helped.
        distill: weight of the source's own predictions in the loss, 0 to 1.
        save_every: updates between two checkpoints: what a crash can cost.
        report_tokens: tokens that perplexity and activations are measured on, at most.
        dtype: of the exported weights; None: the source's, float16 from scratch.
        seed: of everything random.
        threads: torch's; None: torch decides.

    Raises:
        ConfigError: a value out of range, or two that exclude each other.
    """

    texts: tuple[Path, ...]
    out: Path
    validation: tuple[Path, ...] = ()
    source: Path | None = None
    activation: str = "relu"
    layers: int = 4
    d_model: int = 128
    ffn: int = 512
    heads: int = 0
    vocab: int = 2048
    context: int = 256
    steps: int = 0
    minutes: float = 4.0
    batch: int = 16
    rows: int = 0
    rate: float = 0.0
    decay: float = 0.1
    sparsity: float = 0.9
    contrast: float = 1.0
    guard: float = 0.002
    distill: float = 0.0
    save_every: int = 50
    report_tokens: int = 65536
    dtype: str | None = None
    seed: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        off = {"heads": 0, "steps": 0, "rows": 0, "rate": 0.0, "threads": None}
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if name in off and value == off[name]:
                continue
            if not (math.isfinite(value) and low <= value <= high):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value} is outside {low:g}..{high:g}")
        if not self.texts:
            raise ConfigError("there is no text to train on; give --text FILE")
        if self.activation not in ("relu", "silu"):
            raise ConfigError(f"--act {self.activation!r} is unknown; choose relu or silu")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"--dtype {self.dtype!r} is unknown; choose from {', '.join(DTYPES)}")
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.activation == "silu" and self.sparsity:
            raise ConfigError(
                f"--act silu has no silent neurons, so --sparsity {self.sparsity:g} cannot be "
                "reached; give --sparsity 0"
            )
        if self.activation == "silu" and self.source is not None:
            raise ConfigError("--act silu and --from exclude each other; --from makes ReLU models")
        if self.distill and self.source is None:
            raise ConfigError("--distill needs a model to learn from; give --from")
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ConfigError(
                f"--d-model {self.d_model} does not divide into {self.n_heads} heads of an even "
                "width; change --heads or --d-model"
            )
        if self.source is not None and self.source.resolve() == self.out.resolve():
            raise ConfigError(f"--out {self.out} is the model of --from; give another folder")

    @property
    def n_heads(self) -> int:
        """Attention heads of a model from scratch."""
        return self.heads or max(1, self.d_model // 32)

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        return self.rate or (2e-3 if self.source is None else 3e-4)

    @property
    def at_a_time(self) -> int:
        """Windows of one pass."""
        return min(self.batch, self.rows or self.batch)

    @property
    def work(self) -> Path:
        """Where checkpoints and token windows lie meanwhile."""
        return self.out / WORK

    def plan(self) -> dict[str, Any]:
        """All that the result depends on, as plain data: what must not change on the way.

        Files count by name, size and time of change; --threads is free (it moves sums by rounding).
        """
        plan = asdict(self)
        for name in ("out", "threads", "save_every"):
            del plan[name]
        for name in ("texts", "validation"):
            plan[name] = [_stamp(path) for path in plan[name]]
        if self.source is not None:
            plan["source"] = [_stamp(path) for path in sorted(self.source.glob("*.safetensors"))]
        return plan


def _stamp(path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return [path.name, found.st_size, found.st_mtime_ns]
