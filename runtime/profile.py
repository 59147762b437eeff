"""ActivationProfile: how often each neuron fires, and the offline profiler that counts it.

Placement policies read probabilities from it, predictors their neurons' statistics. `profile_text`
feeds windows of text to whoever runs the model; the counting itself happens where the gate is
evaluated. No model is loaded in here.

Axes: L layers, N neurons of a layer.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotcold.runtime.errors import CheckpointError, ConfigError
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.windows import TextEncoder, file_bytes, token_windows

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

MAX_ARRAY_BYTES = 1 << 28  # of one array in a profile; 400 layers of 80,000 neurons fit
# The date in every archive entry: the same counts give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class ActivationProfile:
    """Firing counts of every neuron over a text.

    Args:
        counts_LN: tokens for which the neuron's gate was above 0.
        tokens: tokens run; no count is above it.
        model: checksum of the bundle it was counted with; "" where unknown.
        source: what was run, in words.
    """

    counts_LN: I64
    tokens: int
    model: str = ""
    source: str = ""

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

    @property
    def probabilities_LN(self) -> F64:
        """Share of tokens for which each neuron fires."""
        probabilities_LN: F64 = self.counts_LN / np.float64(self.tokens)
        return probabilities_LN

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
        """A table: sparsity and skewness of every layer and of the model."""
        lines = [
            f"{'layer':>5} {'sparsity':>9} {'hot for 50%':>12} {'hot for 80%':>12} {'dead':>6}"
        ]
        half_L, most_L = self.share_for(0.5), self.share_for(0.8)
        dead_L = (self.counts_LN == 0).mean(axis=1)
        for layer, sparsity in enumerate(self.sparsity_L):
            lines.append(_row(str(layer), sparsity, half_L[layer], most_L[layer], dead_L[layer]))
        dead = float((self.counts_LN == 0).mean())
        half, most = self.share_for_model(0.5), self.share_for_model(0.8)
        lines.append(_row("all", float(self.sparsity_L.mean()), half, most, dead))
        return "\n".join([*lines, f"over {self.tokens:,} tokens"])

    def save(self, path: str | Path) -> None:
        """Write an npz file atomically; the same profile always gives the same bytes."""
        path = Path(path)
        notes = json.dumps({"model": self.model, "source": self.source}, sort_keys=True)
        arrays = {
            "counts": self.counts_LN,
            "tokens": np.int64(self.tokens),
            "notes": np.frombuffer(notes.encode(), dtype=np.uint8),
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name, array in arrays.items():
                        buffer = io.BytesIO()
                        np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=False)
                        entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
                        entry.compress_type = zipfile.ZIP_DEFLATED
                        archive.writestr(entry, buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "ActivationProfile":
        """Read a profile, checking every size before anything is allocated for it.

        Arrays other than `counts`, `tokens` and `notes` are ignored.

        Raises:
            CheckpointError: not a profile, damaged, or with impossible values.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                counts = _member(archive, "counts", path)
                tokens = _member(archive, "tokens", path)
                names = archive.namelist()
                notes = _member(archive, "notes", path) if "notes.npy" in names else None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is not a readable profile ({error})") from error
        except (NotImplementedError, RuntimeError) as error:  # odd compression, encryption
            raise CheckpointError(f"{path} is not a readable profile ({error})") from error
        if tokens.shape != () or tokens.dtype.kind not in "iu":
            raise CheckpointError(
                f"{path}: tokens is {tokens.dtype}{list(tokens.shape)}, not a count"
            )
        if counts.dtype.kind not in "iu":
            raise CheckpointError(f"{path}: counts have dtype {counts.dtype}, must be integers")
        said = _notes(notes, path)
        try:
            return cls(counts.astype(np.int64), int(tokens), said["model"], said["source"])
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None


def _share_for(counts_N: I64, fraction: float) -> float:
    """Share of neurons, hottest first, whose counts reach fraction of the sum; 0 if none fired."""
    running = np.cumsum(np.sort(counts_N)[::-1])
    if running[-1] == 0:
        return 0.0
    needed = int(np.searchsorted(running, fraction * running[-1])) + 1
    return min(needed, len(counts_N)) / len(counts_N)


def _row(name: str, sparsity: float, half: float, most: float, dead: float) -> str:
    return f"{name:>5} {sparsity:>9.1%} {half:>12.1%} {most:>12.1%} {dead:>6.1%}"


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> npt.NDArray[Any]:
    """Read one array; its header must agree with the bytes that are there."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise CheckpointError(f"{path} is not a profile: it has no array '{name}'") from None
    if info.file_size > MAX_ARRAY_BYTES:
        raise CheckpointError(
            f"{path}: array '{name}' claims {info.file_size} bytes, the limit is {MAX_ARRAY_BYTES}"
        )
    with archive.open(info) as member:
        data = io.BytesIO(member.read(MAX_ARRAY_BYTES + 1))
    version = np.lib.format.read_magic(data)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(data)
    if dtype.hasobject or dtype.kind not in "iuf" or fortran:
        raise CheckpointError(f"{path}: array '{name}' has dtype {dtype} or order not of a profile")
    body = data.read()
    wanted = dtype.itemsize
    for size in shape:
        wanted *= int(size)
    if len(body) != wanted:
        raise CheckpointError(
            f"{path}: array '{name}' of shape {list(shape)} needs {wanted} bytes, has {len(body)}"
        )
    return np.frombuffer(body, dtype=dtype).reshape(shape)


def _notes(array: npt.NDArray[Any] | None, path: Path) -> dict[str, str]:
    said = {"model": "", "source": ""}
    if array is None:
        return said
    try:
        found = json.loads(array.astype(np.uint8).tobytes().decode())
        return {name: str(found.get(name, "")) for name in said}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its notes are damaged ({error})") from error


def profile_text(
    texts: Sequence[str | Path],
    tokenizer: TextEncoder,
    count: Callable[[Sequence[int]], None],
    *,
    context: int,
    max_tokens: int | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> int:
    """Feed text files to `count`, window by window, and return the tokens fed.

    Args:
        texts: UTF-8 files, read in this order and never as a whole.
        tokenizer: its template's leading ids start every window.
        count: runs a window from an empty context and adds up what fires.
        context: tokens of a window, the last of a file may be shorter.
        max_tokens: stop after so many tokens in all.
        progress: called after each window with the tokens so far and the share of the work done.

    Raises:
        ConfigError: a file that cannot be read or is not UTF-8 (with the offset), no text at all,
            or an impossible context or limit.
    """
    paths = [Path(text) for text in texts]
    total_bytes = max(1, sum(file_bytes(path) for path in paths))
    done = 0
    for window, read_bytes in token_windows(paths, tokenizer, context, max_tokens):
        count(window)
        done += len(window)
        if progress is not None:
            limit = done / max_tokens if max_tokens else 0.0
            progress(done, min(1.0, max(limit, read_bytes / total_bytes)))
    if done == 0:
        raise ConfigError(f"no text to profile in {', '.join(map(str, paths)) or 'no files'}")
    return done
