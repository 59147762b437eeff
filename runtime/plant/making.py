"""plant: from a shape and what is asked of it to a folder with a model, all or nothing.

Called by `hotcold plant`, benches and tests. Works in a temporary folder beside the wanted one and
renames it at the end; checks options and disk before anything is drawn.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from hotcold.runtime.errors import BackendError, BudgetError, ConfigError
from hotcold.runtime.formats.convert import PREDICTORS, PROFILE, SPARE_BYTES
from hotcold.runtime.formats.layout import layout
from hotcold.runtime.model import DTYPE_BYTES, DType, ModelSpec
from hotcold.runtime.plant.families import find_family
from hotcold.runtime.plant.overfire import plan_noise
from hotcold.runtime.plant.planting import Drawing, Planter
from hotcold.runtime.plant.shapes import find_shape
from hotcold.runtime.plant.statistics import Statistics, firing_probabilities
from hotcold.runtime.plant.streams import TensorStream
from hotcold.runtime.plant.tokens import write_tokenizer
from hotcold.runtime.plant.writers import BundleSink, HuggingFaceSink, Sink
from hotcold.runtime.profile import ActivationProfile

LENGTH = 128  # tokens of a calibration sequence
CHEAP = 1 << 30  # multiplications of a calibration that nobody notices
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PlantOptions:
    """What is asked for; None takes the shape's own.

    Args:
        shape: a name of `shapes.SHAPES`.
        layers: the first so many layers only.
        dtype: of the matrices.
        density, share80, quiet: see Statistics.
        quiet_density, variation: see Statistics.
        recall, precision: of the predictor; 1 and 1 make it exact.
        hidden: width of the predictor; None: 3/16 of the model's.
        correlation: between a token's signal and its predecessor's, in [0, 0.99].
        drift: share of the signal that turns slowly instead of changing by token, in [0, 0.9].
        seed: of everything random.
        tokens: calibration tokens, None: as many as are cheap.
    """

    shape: str
    layers: int | None = None
    dtype: str = "float16"
    density: float | None = None
    share80: float | None = None
    quiet: float | None = None
    quiet_density: float = 0.005
    variation: float = 0.2
    recall: float = 1.0
    precision: float = 1.0
    hidden: int | None = None
    correlation: float = 0.0
    drift: float = 0.0
    seed: int = 0
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"dtype {self.dtype!r:.80} is unknown; choose one of {', '.join(DTYPE_BYTES)}"
            )
        for name, low, high in (
            ("recall", 0.05, 1.0),
            ("precision", 0.05, 1.0),
            ("correlation", 0.0, 0.99),
            ("drift", 0.0, 0.9),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, it must be within {low:g} and {high:g}")
        for name, low_int, high_int in (("tokens", 128, 1 << 17), ("seed", 0, (1 << 63) - 1)):
            number = getattr(self, name)
            if number is not None and not low_int <= number <= high_int:
                raise ConfigError(f"{name} is {number}, it must be within {low_int} and {high_int}")

    def spec(self) -> ModelSpec:
        """Shapes of the model."""
        spec = find_shape(self.shape).spec(self.layers, cast(DType, self.dtype))
        find_family(spec.architecture)
        return spec

    def drawing(self, on_gpu: bool) -> Drawing:
        """Everything the construction needs, checked.

        Raises:
            ConfigError: an option that cannot be, or statistics no layer can have.
        """
        shape, spec = find_shape(self.shape), self.spec()
        statistics = Statistics(
            shape.density if self.density is None else self.density,
            shape.share80 if self.share80 is None else self.share80,
            shape.quiet if self.quiet is None else self.quiet,
            self.quiet_density,
            self.variation,
        )
        for density in set(statistics.density_L(spec.n_layers)):
            p_N = firing_probabilities(spec.n_neurons, density, statistics.share80)
            plan_noise(p_N, self.recall, self.precision)
        cheap = CHEAP // (spec.d_model * spec.n_neurons)
        tokens = self.tokens or min(8192, max(cheap, 2048 if on_gpu else 1024))
        return Drawing(
            spec,
            statistics,
            self._hidden(spec.d_model),
            self.recall,
            self.precision,
            self.correlation,
            self.drift,
            self.seed,
            -(-tokens // LENGTH),
            LENGTH,
        )

    def _hidden(self, d_model: int) -> int:
        hidden = self.hidden
        if hidden is None:
            hidden = max(min(32, d_model), d_model * 3 // 16)
        if not 9 <= hidden <= d_model:
            raise ConfigError(f"hidden is {hidden}, it must be within 9 and {d_model}")
        return hidden

    def describe(self) -> str:
        """What a bundle says about its source."""
        set_ = [f"{k}={v}" for k, v in vars(self).items() if v is not None and k != "shape"]
        return f"planted {self.shape}: {', '.join(set_)}"


@dataclass(frozen=True)
class PlantReport:
    """What was planted, as measured on the calibration tokens.

    Args:
        path: the folder.
        spec: of the model.
        density: share of all neurons that fire, on average.
        share80: share of a layer's neurons that hold 80 % of its activations, mean over layers.
        recall, precision: of the predictor.
        tokens: calibration tokens.
        weights_bytes: of the matrices, predictors not counted.
        checksum: of the bundle; "" for a Hugging Face folder.
        seconds: wall clock.
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


def check_out(out: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        ConfigError: it is a file, or a folder that is not empty.
    """
    if out.is_dir():
        if any(out.iterdir()):
            raise ConfigError(f"{out} exists and is not empty; remove it or give another folder")
    elif out.exists() or out.is_symlink():
        raise ConfigError(f"{out} exists and is no folder; give another name")


def plant(
    options: PlantOptions,
    out: Path,
    *,
    hugging_face: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> PlantReport:
    """Plant a model.

    Args:
        options: what.
        out: the folder to make; may exist if it is empty.
        hugging_face: write safetensors for anyone, instead of a bundle.
        device: "auto", "cpu" or "cuda".
        progress: called with layers done and layers in all.

    Raises:
        ConfigError: an option, or the folder, cannot be used.
        BackendError: no such device.
        BudgetError: the disk is too full, or a layer does not fit the device.
    """
    begin = time.monotonic()
    out = out.expanduser().absolute()
    check_out(out)
    where = find_device(device)
    drawing = options.drawing(where.type == "cuda")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(drawing, out)
        folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        folder.mkdir()
    except OSError as error:
        raise ConfigError(
            f"cannot write beside {out} ({error.strerror}); give a folder you can write"
        ) from error
    try:
        report = _write(options, drawing, folder, hugging_face, where, progress)
        os.replace(folder, out)  # onto an empty folder too
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            check_out(out)  # somebody was faster
        raise BudgetError(
            f"writing {out} failed ({error.strerror}); make room or choose another disk"
        ) from error
    except torch.OutOfMemoryError as error:
        raise BudgetError(
            f"a layer of {options.shape} does not fit the memory of {where}; use --device cpu"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return PlantReport(out, drawing.spec, *report, time.monotonic() - begin)


def _predictor_bytes(drawing: Drawing) -> int:
    spec = drawing.spec
    return 2 * drawing.hidden * (spec.d_model + spec.n_neurons) * spec.n_layers


def _check_disk(drawing: Drawing, out: Path) -> None:
    needed = layout(drawing.spec)[1] + _predictor_bytes(drawing) + SPARE_BYTES
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise BudgetError(
            f"the model takes {needed / 1e9:.2f} GB, the disk of {out.parent} has "
            f"{free / 1e9:.2f} GB free; make room, plant fewer layers or choose another disk"
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
    hugging_face: bool,
    device: torch.device,
    progress: Progress | None,
) -> tuple[float, float, float, float, int, int, str]:
    """Write everything; the measured part of the report."""
    spec = drawing.spec
    planter = Planter(drawing, device)
    counts_LN = np.zeros((spec.n_layers, spec.n_neurons), np.int64)
    proposed = hit = 0
    notes = {"input": "normed"}
    sink: Sink = (HuggingFaceSink if hugging_face else BundleSink)(folder, spec)
    predictors = _predictor_stream(drawing, folder)
    try:
        for index, layer in enumerate(planter.layers()):
            sink.layer(index, layer)
            predictors.write(f"layers.{index}.fc1", layer.fc1)
            predictors.write(f"layers.{index}.fc2", layer.fc2)
            counts_LN[index] = layer.counts_N
            proposed, hit = proposed + layer.proposed, hit + layer.hit
            share = layer.proposed / (planter.tokens * spec.n_neurons)
            notes[f"layers.{index}.threshold"] = repr(layer.threshold)
            notes[f"layers.{index}.density"] = f"{share:.6f}"
            if progress is not None:
                progress(index + 1, spec.n_layers)
        predictors.finish(notes)
        checksum = sink.ends(planter.signal)
        source = options.describe()
        profile = ActivationProfile(counts_LN, planter.tokens, checksum, source)
        profile.save(folder / PROFILE)
        write_tokenizer(folder, spec.vocab_size)
        sink.finish(f"planted-{options.shape}", source)
    finally:
        sink.close()
        predictors.close()
    fired = int(counts_LN.sum())
    return (
        fired / (counts_LN.size * planter.tokens),
        float(profile.share_for(0.8).mean()),
        hit / max(1, fired),
        hit / max(1, proposed),
        planter.tokens,
        layout(spec)[1],
        checksum,
    )
