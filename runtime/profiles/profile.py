"""ActivationProfile: how often and how strongly each neuron fires over a text.

Placement policies read probabilities from it, predictors read statistics of their neurons, and
pictures show all of it. Counted by `hotcold.runtime.offline.profiling`, read and written here; no
model is loaded here.

Axes: L layers, N neurons of a layer, K numbers of neurons that fired for a token, from 0.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.files.npz import pack, unpack
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.profiles.activation_pt import find_counts, read_counts

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

FILE_NAME = "activations.npz"


@dataclass(frozen=True, eq=False)
class ActivationProfile:
    """Firing counts of every neuron over a text, and what else was counted with them.

    Args:
        counts_LN: tokens for which the neuron's gate fired.
        tokens: tokens run; no count is above it.
        model: checksum of the bundle it was counted with; "" where unknown.
        sums_LN: sum over all tokens of the gate behind its activation, act(g . x + b): for a gated
            neuron without the factor of its up row. None where it was not counted.
        tokens_LK: tokens for which exactly k neurons of the layer fired. None likewise.
    """

    counts_LN: I64
    tokens: int
    model: str = ""
    source: str = ""
    sums_LN: F64 | None = None
    tokens_LK: I64 | None = None

    def __post_init__(self) -> None:
        counts = self.counts_LN
        if counts.ndim != 2 or counts.dtype != np.int64 or 0 in counts.shape:
            raise CheckpointError(
                f"profile: counts are {counts.dtype}{list(counts.shape)}, must be int64 [L, N]"
            )
        if self.tokens < 1:
            raise CheckpointError(f"profile: tokens is {self.tokens}, must be at least 1")
        low, high = int(counts.min()), int(counts.max())
        if low < 0 or high > self.tokens:
            raise CheckpointError(
                f"profile: counts reach from {low} to {high}, must be within 0 and the "
                f"{self.tokens} tokens counted"
            )
        self._check_sums()
        self._check_tokens()

    def _check_sums(self) -> None:
        sums = self.sums_LN
        if sums is None:
            return
        if sums.shape != self.counts_LN.shape or sums.dtype != np.float64:
            raise CheckpointError(
                f"profile: sums are {sums.dtype}{list(sums.shape)}, must be float64 "
                f"{list(self.counts_LN.shape)} as the counts"
            )
        silent_LN = self.counts_LN == 0
        if not (np.isfinite(sums).all() and (sums >= 0).all() and not sums[silent_LN].any()):
            raise CheckpointError("profile: sums contradict the counts")

    def _check_tokens(self) -> None:
        tokens_LK = self.tokens_LK
        if tokens_LK is None:
            return
        layers, neurons = self.counts_LN.shape
        fits = tokens_LK.ndim == 2 and tokens_LK.dtype == np.int64
        if not fits or len(tokens_LK) != layers or not 1 <= tokens_LK.shape[1] <= neurons + 1:
            raise CheckpointError(
                f"profile: tokens by fired neurons are {tokens_LK.dtype}{list(tokens_LK.shape)}, "
                f"must be int64 [{layers}, up to {neurons + 1}]"
            )
        fired_L = (tokens_LK * np.arange(tokens_LK.shape[1])).sum(axis=1)
        if (
            int(tokens_LK.min()) < 0
            or (tokens_LK.sum(axis=1) != self.tokens).any()
            or (fired_L != self.counts_LN.sum(axis=1)).any()
        ):
            raise CheckpointError("profile: tokens by fired neurons contradict the counts")

    @property
    def probabilities_LN(self) -> F64:
        """Share of tokens for which each neuron fires."""
        probabilities_LN: F64 = self.counts_LN / np.float64(self.tokens)
        return probabilities_LN

    def density_quantile(self, share: float) -> F64 | None:
        """Density (share of neurons firing) of each layer not exceeded by this share of tokens."""
        if self.tokens_LK is None:
            return None
        running_LK = np.cumsum(self.tokens_LK, axis=1)
        quantile_L: F64 = (running_LK < share * self.tokens).sum(axis=1) / self.counts_LN.shape[1]
        return quantile_L

    @property
    def sparsity_L(self) -> F64:
        """Share of a layer's neurons that stay silent for a token, on average."""
        sparsity_L: F64 = 1.0 - self.probabilities_LN.mean(axis=1)
        return sparsity_L

    def share_for(self, fraction: float) -> F64:
        """Smallest share of each layer's neurons that holds this fraction of its activations."""
        return np.array([_share_for(counts_N, fraction) for counts_N in self.counts_LN])

    def share_for_model(self, fraction: float) -> float:
        """The same over all neurons of the model at once."""
        return _share_for(self.counts_LN.reshape(-1), fraction)

    def overlap(self, other: "ActivationProfile", share: float = 0.2) -> float:
        """How much of each layer's hottest share of neurons two texts have in common, on average.

        Raises:
            CheckpointError: the other profile is of another shape of model.
        """
        if self.counts_LN.shape != other.counts_LN.shape:
            raise CheckpointError(
                f"profiles of {list(self.counts_LN.shape)} and {list(other.counts_LN.shape)} "
                "neurons do not compare; count both with the same model"
            )
        keep = max(1, round(share * int(self.counts_LN.shape[1])))
        mine_LK, theirs_LK = (
            np.argsort(-profile.counts_LN, axis=1, kind="stable")[:, :keep]
            for profile in (self, other)
        )
        common = [int(np.intersect1d(a, b).size) for a, b in zip(mine_LK, theirs_LK, strict=True)]
        return sum(common) / (keep * len(common))

    def check_fits(self, spec: ModelSpec) -> None:
        """Refuse a profile of another shape of model.

        Raises:
            CheckpointError: naming both shapes.
        """
        shape = (spec.n_layers, spec.n_neurons)
        if self.counts_LN.shape != shape:
            raise CheckpointError(
                f"profile is for {self.counts_LN.shape[0]} layers of {self.counts_LN.shape[1]} "
                f"neurons, the model has {shape[0]} of {shape[1]}; profile this model"
            )

    def summary(self) -> str:
        """A table: sparsity, skewness and, where counted, spread of each layer and the model."""
        half_L, most_L = self.share_for(0.5), self.share_for(0.8)
        dead_L = (self.counts_LN == 0).mean(axis=1)
        heads = f"{'layer':>5} {'sparsity':>9} {'hot for 50%':>12} {'hot for 80%':>12} {'dead':>6}"
        low_L, high_L = self.density_quantile(0.05), self.density_quantile(0.95)
        heads += f" {'active, 5-95% of tokens':>24}" if low_L is not None else ""
        heads += f" {'mean gate if fired':>17}" if self.sums_LN is not None else ""
        lines = [heads]
        for layer, sparsity in enumerate(self.sparsity_L):
            line = _row(str(layer), sparsity, half_L[layer], most_L[layer], dead_L[layer])
            if low_L is not None and high_L is not None:
                spread = f"{100 * low_L[layer]:.1f} - {high_L[layer]:.1%}"
                line += f" {spread:>24}"
            if self.sums_LN is not None:
                fired = max(1, int(self.counts_LN[layer].sum()))
                line += f" {self.sums_LN[layer].sum() / fired:>17.4g}"
            lines.append(line)
        dead = float((self.counts_LN == 0).mean())
        half, most = self.share_for_model(0.5), self.share_for_model(0.8)
        lines.append(_row("all", float(self.sparsity_L.mean()), half, most, dead))
        return "\n".join([*lines, f"over {self.tokens:,} tokens"])

    def check_model(self, spec: ModelSpec, checksum: str) -> None:
        """Refuse a profile of another model; one that does not say which is judged by its shape.

        Raises:
            CheckpointError: naming both.
        """
        self.check_fits(spec)
        if self.model not in ("", checksum):
            raise CheckpointError(
                f"profile was counted with another model ({self.model[:12]}, this one is "
                f"{checksum[:12]}); profile this model"
            )

    def save(self, path: str | Path) -> None:
        """Write an npz file atomically; the same profile always gives the same bytes."""
        notes = json.dumps({"model": self.model, "source": self.source}, sort_keys=True)
        arrays: dict[str, Any] = {
            "counts": self.counts_LN,
            "tokens": np.array(self.tokens, np.int64),
            "notes": np.frombuffer(notes.encode(), dtype=np.uint8),
            "sums": self.sums_LN,
            "fired": self.tokens_LK,
        }
        there = {name: array for name, array in arrays.items() if array is not None}
        write_atomically(Path(path), pack(there, compress=True))

    @classmethod
    def load(cls, path: str | Path) -> "ActivationProfile":
        """Read a profile: the file, a folder with one, or PowerInfer's `activation_{i}.pt`.

        Raises:
            CheckpointError: not a profile, damaged, or with impossible values.
        """
        found = _find(Path(path))
        return _of_counts(found, Path(path)) if isinstance(found, list) else _read(found)


def _share_for(counts_N: I64, fraction: float) -> float:
    running = np.cumsum(np.sort(counts_N)[::-1])
    if running[-1] == 0:
        return 0.0
    needed = int(np.searchsorted(running, fraction * running[-1])) + 1
    return min(needed, len(counts_N)) / len(counts_N)


def _row(name: str, sparsity: float, half: float, most: float, dead: float) -> str:
    return f"{name:>5} {sparsity:>9.1%} {half:>12.1%} {most:>12.1%} {dead:>6.1%}"


# ---- on disk: activations.npz


LIMIT_BYTES = 1 << 30  # of all arrays; 400 layers of 80,000 neurons fit


def _find(path: Path) -> Path | list[Path]:
    if not path.is_dir():
        return path
    if (path / FILE_NAME).exists():
        return path / FILE_NAME
    if files := find_counts(path):
        return files
    raise CheckpointError(
        f"{path} holds no profile: neither {FILE_NAME} nor PowerInfer's activation_0.pt"
    )


def _read(path: Path) -> ActivationProfile:
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise ValueError(f"it has more than {LIMIT_BYTES} bytes")
        _, arrays = unpack(path.read_bytes(), LIMIT_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable profile ({error})") from error
    for name in ("counts", "tokens"):
        if name not in arrays:
            raise CheckpointError(f"{path} is not a profile: it has no array '{name}'")
    counts, tokens = arrays["counts"], arrays["tokens"]
    if tokens.shape != () or tokens.dtype.kind not in "iu":
        raise CheckpointError(f"{path}: tokens is {tokens.dtype}{list(tokens.shape)}, not a count")
    if counts.dtype.kind not in "iu":
        raise CheckpointError(f"{path}: counts have dtype {counts.dtype}, must be integers")
    try:
        said = json.loads(arrays["notes"].astype(np.uint8).tobytes()) if "notes" in arrays else {}
        model, source = (str(said.get(name, "")) for name in ("model", "source"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its notes are damaged ({error})") from error
    more = arrays.get("sums"), arrays.get("fired")
    try:
        return ActivationProfile(counts.astype(np.int64), int(tokens), model, source, *more)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _of_counts(files: list[Path], folder: Path) -> ActivationProfile:
    """PowerInfer's counts. It keeps no number of tokens: the highest count stands for it."""
    counts_LN = read_counts(files)
    source = f"PowerInfer's {folder.name}, tokens not known: taken as the highest count"
    return ActivationProfile(counts_LN, max(1, int(counts_LN.max())), "", source)
