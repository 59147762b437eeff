"""predictors.safetensors: the file learned predictors come in.

Tensors of layer i: `layers.{i}.fc1` [H, D], `layers.{i}.fc2` [N, H], optional `layers.{i}.fc2.bias`
[N]; F16, F32 or BF16; H may differ from layer to layer. A neuron's logit is fc2 . relu(fc1 . x) +
bias. Metadata, all optional: `threshold` or `layers.{i}.threshold` (default 0), `input` (`normed`,
the default, or `residual`), `layers.{i}.density` (share of neurons proposed when it was measured),
`layers.{i}.calibration` (JSON: [[recall, threshold, density], ...]), `lookahead` (how many layers
earlier the input is taken; default 0).

Read by policies/predictor/learned.py, written by whoever trains. Everything is checked before a
value is used. Whether a predictor is any good is not judged here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, to_float32
from hotcold.runtime.model.checkpoints.safetensors_file import read_header
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.work import matrices_bytes
from hotcold.runtime.predictors.predictor import INPUTS, Matrix, PredictorLayer

SafeFile = Any  # safetensors types its reader's methods in no way mypy accepts

FILE_NAME = "predictors.safetensors"
DTYPES = ("F16", "F32", "BF16")
_NAME = re.compile(r"layers\.(\d{1,6})\.(fc1|fc2|fc2\.bias)")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of one layer, the recall it promises, its density on the calibration text."""

    recall: float
    threshold: float
    density: float


Calibration = tuple[OperatingPoint, ...]


@dataclass(frozen=True)
class PredictorFile:
    """What a predictors file holds.

    Args:
        layers: a predictor for each layer.
        density_L: share of neurons each proposes, where the file states it.
        calibration_L: other thresholds by recall, ascending; empty where the file has none.
        lookahead: how many layers earlier the predictors take their input.
    """

    layers: tuple[PredictorLayer, ...]
    density_L: tuple[float | None, ...]
    calibration_L: tuple[Calibration, ...] = ()
    lookahead: int = 0

    def point(self, layer: int, recall: float) -> OperatingPoint:
        """The operating point of a layer for a recall, interpolated between calibrated ones.

        Raises:
            CheckpointError: the file was not calibrated, or not for such a recall.
        """
        points = self.calibration_L[layer] if self.calibration_L else ()
        if not points or not points[0].recall <= recall <= points[-1].recall:
            reach = f"{points[0].recall} to {points[-1].recall}" if points else "no recall"
            raise CheckpointError(
                f"the predictors are calibrated for {reach}, recall {recall} was asked for; "
                "choose another or train again"
            )
        known = [p.recall for p in points]
        threshold = float(np.interp(recall, known, [p.threshold for p in points]))
        return OperatingPoint(
            recall, threshold, float(np.interp(recall, known, [p.density for p in points]))
        )


def load_predictors(path: str | Path, spec: ModelSpec) -> PredictorFile:
    """Read and check a predictors file for a model.

    Args:
        path: the file, or a folder that holds it under the name predictors.safetensors, or a folder
            of PowerInfer's model_{i}.pt.
        spec: the model it must fit.

    Raises:
        CheckpointError: unreadable, or not for this model; names tensor, value and what was
            expected.
    """
    path = Path(path)
    if path.is_dir():
        folder, path = path, path / FILE_NAME
        if not path.exists():
            # Imported here because it imports torch, which costs an actor a second at its start.
            from hotcold.runtime.predictors.powerinfer_predictors import (
                is_powerinfer,
                load_powerinfer,
            )

            if is_powerinfer(folder):
                return PredictorFile(load_powerinfer(folder, spec), (None,) * spec.n_layers)
    if not path.is_file():
        what = impostor(path)
        if what:
            raise CheckpointError(f"{path} {what}")
        raise CheckpointError(
            f"no predictors at {path}; expected a file {FILE_NAME}, or PowerInfer's model_0.pt "
            "and so on in a folder"
        )
    try:
        with safe_open(path, "np") as file:
            return _read(file, path, spec)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    what = impostor(path) or f"is not a readable safetensors file ({error}); copy or train it again"
    return CheckpointError(f"{path} {what}")


def predictor_costs(path: str | Path, spec: ModelSpec) -> tuple[int, tuple[float | None, ...]]:
    """Bytes of a file's predictors and the density it states for each, no matrix being read.

    Raises:
        CheckpointError: unreadable, or not for this model.
    """
    path = Path(path)
    try:
        with safe_open(path, "np") as file:
            names = set(file.keys())
            _check_names(names, path, spec)
            notes = dict(file.metadata() or {})
            own = sum(_layer_bytes(file, f"layers.{i}", names, spec) for i in range(spec.n_layers))
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    density_L = (_number(notes, (f"layers.{i}.density",), path) for i in range(spec.n_layers))
    return own, tuple(density_L)


def _layer_bytes(file: SafeFile, stem: str, names: set[str], spec: ModelSpec) -> int:
    """Bytes of a layer once it is read; its shapes are checked then."""
    first, second = (file.get_slice(f"{stem}.{name}") for name in ("fc1", "fc2"))
    half = {str(first.get_dtype()), str(second.get_dtype())} == {"F16"}
    width = (first.get_shape() or [0])[0]
    dtype = "float16" if half else "float32"
    return matrices_bytes(spec, width, dtype, f"{stem}.fc2.bias" in names)


def save_predictors(
    path: str | Path, layers: Sequence[PredictorLayer], metadata: Mapping[str, str] | None = None
) -> None:
    """Write layers with fc1 and fc2 to a predictors file, atomically.

    Args:
        path: the file to write; its folder must exist.
        layers: one a layer, all with the same input, relu between the matrices.
        metadata: further entries; thresholds and input are written from the layers.
    """
    tensors: dict[str, Any] = {}
    notes = {**dict(metadata or {}), "input": layers[0].input}
    for index, layer in enumerate(layers):
        if (
            layer.fc1 is None
            or layer.fc2 is None
            or not layer.relu
            or layer.input != notes["input"]
        ):
            raise ValueError(
                f"layer {index} does not fit {FILE_NAME}: it needs fc1, fc2, relu and input "
                f"'{notes['input']}'"
            )
        tensors[f"layers.{index}.fc1"] = layer.fc1
        tensors[f"layers.{index}.fc2"] = layer.fc2
        if layer.bias_N is not None:
            tensors[f"layers.{index}.fc2.bias"] = layer.bias_N
        notes[f"layers.{index}.threshold"] = repr(float(layer.threshold))
    write_atomically(Path(path), save(tensors, metadata=notes))


def _read(file: SafeFile, path: Path, spec: ModelSpec) -> PredictorFile:
    names = set(file.keys())
    notes = dict(file.metadata() or {})
    _check_names(names, path, spec)
    kind = notes.get("input", "normed")
    if kind not in INPUTS:
        raise CheckpointError(f"{path}: input is {kind!r}, must be 'normed' or 'residual'")
    layers, densities, calibrations = [], [], []
    for index in range(spec.n_layers):
        stem = f"layers.{index}"
        fc1 = _tensor(file, f"{stem}.fc1", (None, spec.d_model), path)
        fc2 = _tensor(file, f"{stem}.fc2", (spec.n_neurons, fc1.shape[0]), path)
        if fc1.dtype != fc2.dtype:
            fc1, fc2 = fc1.astype(np.float32), fc2.astype(np.float32)
        bias = None
        if f"{stem}.fc2.bias" in names:
            bias = _tensor(file, f"{stem}.fc2.bias", (spec.n_neurons,), path).astype(np.float32)
        threshold = _number(notes, (f"{stem}.threshold", "threshold"), path)
        layers.append(
            PredictorLayer(
                fc1,
                fc2,
                bias,
                relu=True,
                threshold=0.0 if threshold is None else threshold,
                input="normed" if kind == "normed" else "residual",
            )
        )
        density = _number(notes, (f"{stem}.density",), path)
        if density is not None and not 0 <= density <= 1:
            raise CheckpointError(f"{path}: {stem}.density is {density}, must be in [0, 1]")
        densities.append(density)
        calibrations.append(_calibration(notes.get(f"{stem}.calibration"), stem, path))
    lookahead = _number(notes, ("lookahead",), path) or 0.0
    if lookahead != int(lookahead) or not 0 <= lookahead < spec.n_layers:
        raise CheckpointError(f"{path}: lookahead is {lookahead}, must be a number of layers")
    return PredictorFile(
        tuple(layers),
        tuple(densities),
        tuple(calibrations) if all(calibrations) else (),
        int(lookahead),
    )


def _calibration(text: str | None, stem: str, path: Path) -> Calibration:
    """The operating points in a metadata entry, checked; empty where there is none."""
    if text is None:
        return ()
    try:
        rows = [[float(value) for value in row] for row in json.loads(text)]
        points = tuple(OperatingPoint(*row) for row in rows)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {stem}.calibration is damaged ({error})") from error
    recalls = [point.recall for point in points]
    fine = all(
        0 <= p.recall <= 1 and 0 <= p.density <= 1 and math.isfinite(p.threshold) for p in points
    )
    if not fine or recalls != sorted(set(recalls)):
        raise CheckpointError(f"{path}: {stem}.calibration is not a list of operating points")
    return points


def _check_names(names: set[str], path: Path, spec: ModelSpec) -> None:
    """Refuse a file that lacks a tensor, and one with tensors this model has no use for."""
    for index in range(spec.n_layers):
        for part in ("fc1", "fc2"):
            if f"layers.{index}.{part}" not in names:
                raise CheckpointError(
                    f"{path} has no tensor 'layers.{index}.{part}'; the model has "
                    f"{spec.n_layers} layers and each needs fc1 and fc2"
                )
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) >= spec.n_layers:
            raise CheckpointError(
                f"{path} has an unexpected tensor '{name}'; the model has {spec.n_layers} layers "
                "with fc1, fc2 and fc2.bias each: these predictors belong to another model"
            )


def _tensor(file: SafeFile, name: str, shape: tuple[int | None, ...], path: Path) -> Matrix:
    """Read a tensor after checking dtype and shape (None: any size of at least 1)."""
    entry = file.get_slice(name)
    found, dtype = list(entry.get_shape()), str(entry.get_dtype())
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor '{name}' has dtype {dtype}, must be one of {', '.join(DTYPES)}"
        )
    fits = len(found) == len(shape) and all(
        size >= 1 and want in (None, size) for size, want in zip(found, shape, strict=True)
    )
    if not fits:
        wanted = ["H" if want is None else want for want in shape]
        raise CheckpointError(
            f"{path}: tensor '{name}' has shape {found}, expected [{', '.join(map(str, wanted))}]"
        )
    array = _bfloat16(path, name) if dtype == "BF16" else file.get_tensor(name)
    array = np.ascontiguousarray(array).reshape(found)
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise CheckpointError(
            f"{path}: tensor '{name}' holds {bad} values that are not finite; train it again"
        )
    return array


def _bfloat16(path: Path, name: str) -> Matrix:
    """A tensor's values as float32, which holds bfloat16 exactly; numpy has no such type."""
    entry = read_header(path)[name]
    bits = np.fromfile(path, RAW_TYPES["bfloat16"], entry.size // 2, offset=entry.begin)
    return to_float32(bits, "bfloat16")


def _number(notes: Mapping[str, str], keys: Sequence[str], path: Path) -> float | None:
    """The first of these metadata entries as a finite number; None where there is none."""
    for key in keys:
        if key not in notes:
            continue
        try:
            value = float(notes[key])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise CheckpointError(f"{path}: {key} is {notes[key]!r}, must be a finite number")
        return value
    return None
