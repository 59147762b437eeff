"""plant: from a shape and options to a folder with a model, complete or not at all.

Called by `hotcold plant`, benches and tests. Works in a temporary folder beside the wanted one and
renames it at the end; checks options, memory and disk before anything is drawn.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hotcold.native.errors import BackendError, BudgetError, ConfigError
from hotcold.runtime.model.checkpoints.convert import PREDICTORS, PROFILE
from hotcold.runtime.model.checkpoints.layout import layout
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.drawing import Drawing
from hotcold.runtime.offline.plant.gguf_sink import GgufSink
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.offline.plant.planting import Planter
from hotcold.runtime.offline.plant.room import check_disk, check_memory, check_out
from hotcold.runtime.offline.plant.streams import TensorStream
from hotcold.runtime.offline.plant.tokens import write_tokenizer
from hotcold.runtime.offline.plant.writers import BundleSink, HuggingFaceSink, Sink
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.gguf import check_gguf

Progress = Callable[[int, int], None]
FORMS = ("bundle", "hf", "gguf", "powerinfer-gguf")


@dataclass(frozen=True)
class PlantReport:
    """What was planted, as measured on the calibration tokens.

    share80 is the mean over layers; weights_bytes counts no predictors; `checksum` is "" for other
    formats than bundles.
    """

    path: Path
    spec: ModelSpec
    density: float
    share80: float
    recall: float
    precision: float
    tokens: int
    weights_bytes: int
    checksum: str
    seconds: float


def find_device(name: str) -> torch.device:
    """The device of a name: cpu, cuda, or auto for the latter where there is one.

    Raises:
        BackendError: no such device here.
    """
    there = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if there else "cpu"
    if name not in ("cpu", "cuda"):
        raise BackendError(f"device {name!r:.80} is unknown; choose auto, cpu or cuda")
    if name == "cuda" and not there:
        raise BackendError("device cuda was asked for and torch finds none here; use --device cpu")
    return torch.device(name)


def plant(
    options: PlantOptions,
    out: Path,
    *,
    form: str = "bundle",
    device: str = "auto",
    progress: Progress | None = None,
) -> PlantReport:
    """Plant a model.

    `out` may exist if it is empty; `device` is "auto", "cpu" or "cuda"; `progress` is called with
    layers done and layers in all.

    Raises:
        ConfigError: an option, or the folder, cannot be used.
        BackendError: no such device.
        BudgetError: the disk is too full, or a layer does not fit memory or device.
    """
    begin = time.monotonic()
    out = out.expanduser().absolute()
    check_out(out)
    where = find_device(device)
    drawing = options.drawing(where.type == "cuda")
    _check_form(form, drawing)
    if where.type == "cpu":
        check_memory(drawing)
    try:
        check_disk(drawing, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        folder.mkdir()
    except OSError as error:
        raise ConfigError(
            f"cannot write beside {out} ({error.strerror}); give a folder you can write"
        ) from error
    try:
        report = _write(options, drawing, folder, form, where, progress)
        os.replace(folder, out)  # onto an empty folder too
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            check_out(out)  # another process was faster
        raise BudgetError(
            f"writing {out} failed ({error.strerror}); make room or choose another disk"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        way_out = (
            "free memory or choose a smaller shape" if where.type == "cpu" else "use --device cpu"
        )
        raise BudgetError(
            f"a layer of {options.shape} does not fit the memory of {where}; {way_out}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return PlantReport(out, drawing.spec, *report, time.monotonic() - begin)


def _check_form(form: str, drawing: Drawing) -> None:
    """Refuse, before anything is drawn, a model that has no such form; ConfigError says why."""
    if form not in FORMS:
        raise ConfigError(f"format {form!r:.80} is unknown; choose one of {', '.join(FORMS)}")
    if form == "hf" and drawing.spec.neuron_dtype:
        raise ConfigError(
            f"a Hugging Face checkpoint holds no {drawing.spec.neuron_dtype} neurons; plant it in "
            f"{drawing.spec.dtype}, and convert it with --dtype {drawing.spec.neuron_dtype}"
        )
    if form not in ("bundle", "hf"):
        check_gguf(drawing.spec, form == "powerinfer-gguf")


def _sink(form: str, drawing: Drawing, folder: Path) -> Sink:
    if form == "bundle":
        return BundleSink(folder, drawing.spec)
    if form == "hf":
        return HuggingFaceSink(folder, drawing.spec)
    return GgufSink(folder, drawing.spec, drawing.hidden if form == "powerinfer-gguf" else None)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "can't allocate memory" in str(error)
    )


def _predictor_stream(drawing: Drawing, folder: Path) -> TensorStream:
    spec, tensors = drawing.spec, {}
    for i in range(spec.n_layers):
        tensors[f"layers.{i}.fc1"] = ((drawing.hidden, spec.d_model), torch.float16)
        tensors[f"layers.{i}.fc2"] = ((spec.n_neurons, drawing.hidden), torch.float16)
    notes = [f"layers.{i}.{note}" for i in range(spec.n_layers) for note in _NOTES]
    return TensorStream(folder / PREDICTORS, tensors, ("input", *notes))


_NOTES = ("threshold", "density")


def _write(
    options: PlantOptions,
    drawing: Drawing,
    folder: Path,
    form: str,
    device: torch.device,
    progress: Progress | None,
) -> tuple[float, float, float, float, int, int, str]:
    spec = drawing.spec
    planter = Planter(drawing, device)
    counts_LN = np.zeros((spec.n_layers, spec.n_neurons), np.int64)
    proposed = hit = 0
    notes = {"input": "normed"}
    sink = _sink(form, drawing, folder)
    beside = not isinstance(sink, GgufSink)
    predictors = _predictor_stream(drawing, folder) if beside else None
    try:
        for index, layer in enumerate(planter.layers()):
            guess = layer.guess
            sink.predictor(index, guess)
            sink.layer(index, layer.tensors)
            if predictors is not None:
                predictors.write(f"layers.{index}.fc1", guess.fc1)
                predictors.write(f"layers.{index}.fc2", guess.fc2)
            counts_LN[index] = layer.counts_N
            proposed, hit = proposed + guess.proposed, hit + guess.hit
            share = guess.proposed / (drawing.tokens * spec.n_neurons)
            notes[f"layers.{index}.threshold"] = repr(guess.threshold)
            notes[f"layers.{index}.density"] = f"{share:.6f}"
            del layer, guess  # gigabytes, while the next is made
            if progress is not None:
                progress(index + 1, spec.n_layers)
        if predictors is not None:
            predictors.finish(notes)
        checksum = sink.ends(planter.ends())
        sink.counts(counts_LN)
        source = options.describe()
        profile = ActivationProfile(counts_LN, drawing.tokens, checksum, source)
        profile.save(folder / PROFILE)
        write_tokenizer(folder, spec.vocab_size)
        sink.finish(f"planted-{options.shape}", source)
    finally:
        sink.close()
        if predictors is not None:
            predictors.close()
    fired = int(counts_LN.sum())
    return (
        fired / (counts_LN.size * drawing.tokens),
        float(profile.share_for(0.8).mean()),
        hit / max(1, fired),
        hit / max(1, proposed),
        drawing.tokens,
        layout(spec)[1],
        checksum,
    )
