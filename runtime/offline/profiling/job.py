"""A profile as a job: units of windows, each saved when it is done.

Killed at any time and started again, it loses at most one unit and ends with the same files as an
uninterrupted job; work.py says how. Called by `hotcold profile`.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotcold.native.errors import BudgetError, CheckpointError, ConfigError
from hotcold.runtime.files import recording
from hotcold.runtime.files.jsonl import TEXT_FIELD, Skipped
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.offline.profiling import sampling
from hotcold.runtime.offline.profiling.counting import choose_streamed, choose_unit, count_unit
from hotcold.runtime.offline.profiling.work import (
    BITS,
    FOLDER,
    State,
    Unit,
    alone,
    begin,
    bits_file,
    resume,
    save_state,
    write_bits,
)
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.profiles.profile import FILE_NAME, ActivationProfile
from hotcold.runtime.text.tokenizer import Tokenizer
from hotcold.runtime.text.windows import file_bytes, token_windows
from hotcold.runtime.weights.weights import WeightStore

Progress = Callable[[int, float], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class ProfileJob:
    """What to count.

    Args:
        bundle: the model.
        config: the model as the engine takes it, for sampling.
        context: tokens of a window.
        device: where to compute.
        workers: batches at a time on a CPU; no result depends on it.
        texts: files to count over; none where the model samples its own.
        own: how it does that.
        field: of JSON lines, that holds the text.
        max_tokens: stop after so many.
        bitmaps: make a recording too.
    """

    bundle: Bundle
    config: EngineConfig
    context: int
    device: torch.device
    workers: int
    texts: tuple[Path, ...] = ()
    own: sampling.SelfText | None = None
    field: str = TEXT_FIELD
    max_tokens: int | None = None
    bitmaps: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and neurons of each."""
        return self.bundle.spec.n_layers, self.bundle.spec.n_neurons

    @property
    def bits_shape(self) -> tuple[int, int]:
        """Layers, and bytes of a token's bits in each."""
        return self.shape[0], -(-self.shape[1] // 8)

    def identity(self) -> dict[str, Any]:
        """What the result depends on, as plain data."""
        return {
            "model": self.bundle.checksum,
            "text": [[path.name, file_bytes(path)] for path in self.texts],
            "own text": None if self.own is None else asdict(self.own),
            "field": self.field,
            "context": self.context,
            "max tokens": self.max_tokens,
            "device": self.device.type,
            "bitmaps": self.bitmaps,
        }


@dataclass(frozen=True)
class Profiled:
    """What came out.

    Args:
        profile: the counts, as saved.
        path: where.
        skipped: lines of the text that held none.
        resumed_tokens: counted by earlier runs of the job.
    """

    profile: ActivationProfile
    path: Path
    skipped: Skipped
    resumed_tokens: int


def run_job(
    job: ProfileJob, out: Path, progress: Progress | None = None, say: Say = lambda text: None
) -> Profiled:
    """Count, or go on counting, and write the profile into a folder.

    Args:
        job: what to count.
        out: the folder, made if missing.
        progress: called after each unit with the tokens so far and the share of the work done.
        say: told what is going on.

    Raises:
        ConfigError: text that cannot be used; the folder holds another job's work, or is in use.
        BudgetError: the device's memory is too small.
        CheckpointError: a model that cannot be counted with.
    """
    identity = job.identity()
    if job.bitmaps:
        recording.check_size(job.bits_shape, job.max_tokens or 0)
    there, work = out.exists(), out / FOLDER
    try:
        work.mkdir(parents=True, exist_ok=True)
        with alone(work):
            done = _run(job, out, identity, progress, say)
        shutil.rmtree(work, ignore_errors=True)
        return done
    except _Unusable as unusable:
        # Any fix of this input makes it another job: there is nothing to keep.
        shutil.rmtree(work if there else out)
        raise unusable.error from unusable.error.__cause__
    except torch.OutOfMemoryError as error:
        raise BudgetError(
            f"the memory of {job.device} is too small for a layer and its text; use --device cpu"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out} ({error.strerror or error}); make room, or give a folder you "
            "can write"
        ) from error


def _run(
    job: ProfileJob, out: Path, identity: dict[str, Any], progress: Progress | None, say: Say
) -> Profiled:
    """Count what is left, and write the results."""
    work = out / FOLDER
    streamed = choose_streamed(job.bundle, job.device)
    unit_tokens = begin(work, identity, choose_unit(job.bundle, job.device, streamed))
    texts = _texts(job, work, progress, say)
    units, skipped = _units(job, texts, unit_tokens)
    bits_per_token = job.bits_shape[0] * job.bits_shape[1] if job.bitmaps else 0
    state = resume(work, units, job.shape, bits_per_token)
    resumed = state.tally.tokens
    if resumed:
        say(f"going on after {resumed:,} tokens")
    _count(job, work, state, units, _share(texts, job.max_tokens, progress))
    return Profiled(_finish(job, out, state, skipped), out / FILE_NAME, skipped, resumed)


class _Unusable(Exception):
    """An input that turned out to be unusable while it was read."""

    def __init__(self, error: ConfigError | CheckpointError) -> None:
        super().__init__(str(error))
        self.error = error


def _texts(job: ProfileJob, work: Path, progress: Progress | None, say: Say) -> tuple[Path, ...]:
    """The files to read, the model's own text written first."""
    if job.own is None:
        return job.texts
    path = work / sampling.FILE_NAME
    try:
        sampled = sampling.sample_text(job.config, job.own, path, progress)
    except (ConfigError, CheckpointError) as error:
        raise _Unusable(error) from error
    if sampled:
        say(f"sampled {sampled:,} tokens")
    return (path,)


def _units(
    job: ProfileJob, texts: tuple[Path, ...], unit_tokens: int
) -> tuple[Iterator[Unit], Skipped]:
    """The text's units, and the counter of lines that are skipped while reading."""
    try:
        tokenizer = Tokenizer.load(job.bundle.path, job.bundle.spec.vocab_size)
    except CheckpointError as error:
        raise _Unusable(error) from error
    skipped = Skipped()
    windows = token_windows(texts, tokenizer, job.context, job.max_tokens, job.field, skipped)

    def units() -> Iterator[Unit]:
        unit: list[list[int]] = []
        tokens = read_bytes = 0
        try:
            for window, read_bytes in windows:
                unit.append(window)
                tokens += len(window)
                if tokens >= unit_tokens:
                    yield unit, read_bytes
                    unit, tokens = [], 0
        except ConfigError as error:
            raise _Unusable(error) from error
        if unit:
            yield unit, read_bytes

    return units(), skipped


def _count(
    job: ProfileJob, work: Path, state: State, units: Iterator[Unit], report: Progress
) -> None:
    """Run the units that are left, saving after each."""
    layers, width = job.bits_shape
    workers = job.workers if job.device.type == "cpu" else 1
    size = state.tally.tokens * layers * width
    with (
        WeightStore.open(job.bundle) as store,
        bits_file(work, size) if job.bitmaps else nullcontext() as bits,
    ):
        model: DenseModel | None = None
        for unit, read_bytes in units:
            tokens = sum(len(window) for window in unit)
            try:
                if job.bitmaps:
                    recording.check_size(job.bits_shape, state.tally.tokens + tokens)
                if model is None:
                    streamed = choose_streamed(job.bundle, job.device)
                    model = DenseModel(job.bundle, store, job.context, job.device, streamed)
                bits_TLS = None if bits is None else np.zeros((tokens, layers, width), np.uint8)
                tally = count_unit(model, unit, workers, bits_TLS)
            except (ConfigError, CheckpointError) as error:
                raise _Unusable(error) from error
            if bits is not None and bits_TLS is not None:
                write_bits(bits, bits_TLS)
            state.add(unit, tally)
            save_state(work, state)
            report(state.tally.tokens, read_bytes)
    if not state.tally.tokens:
        names = ", ".join(str(path) for path in job.texts) or "what the model sampled"
        raise _Unusable(ConfigError(f"no text to profile in {names}"))


def _share(
    texts: Sequence[Path], max_tokens: int | None, progress: Progress | None
) -> Callable[[int, float], None]:
    """Turn tokens and bytes read into a share of the whole."""
    total = max(1, sum(file_bytes(path) for path in texts))

    def report(tokens: int, read_bytes: float) -> None:
        if progress is not None:
            limit = tokens / max_tokens if max_tokens else 0.0
            progress(tokens, min(1.0, max(limit, read_bytes / total)))

    return report


def _finish(job: ProfileJob, out: Path, state: State, skipped: Skipped) -> ActivationProfile:
    """Write the results, and remove what an earlier profile left in the folder."""
    source = str(job.own) if job.own is not None else ", ".join(path.name for path in job.texts)
    if skipped.lines:
        source += f" ({skipped.lines} lines skipped)"
    profile = state.tally.profile(job.bundle.checksum, source)
    target = out / recording.FILE_NAME
    if job.bitmaps:
        shape = (profile.tokens, *job.bits_shape)
        header = {"model": profile.model, "source": source, "neurons": job.bundle.spec.n_neurons}
        recording.write_recording(target, out / FOLDER / BITS, shape, state.lengths, header)
    else:
        target.unlink(missing_ok=True)
    if job.own is not None:
        os.replace(out / FOLDER / sampling.FILE_NAME, out / sampling.FILE_NAME)
    profile.save(out / FILE_NAME)
    return profile
