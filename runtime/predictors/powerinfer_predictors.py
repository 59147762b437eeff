"""model_{i}.pt: the predictors that PowerInfer publishes, one file per layer.

A file is a PyTorch state dict with `fc1.weight` [H, D] and `fc2.weight` [N, H], by itself or under
`state_dict`, `model_state_dict` or `model`, names perhaps led by `module.`; an optional config.json
beside them holds `sparse_threshold` (default 0). A neuron's logit is fc2 . relu(fc1 . h), without
biases, h being the residual stream before the feed-forward norm.

Read by runtime/predictors/predictor_file.py where a folder holds such files. Only tensors are read
(PyTorch's weights_only: its unpickler knows no other classes and calls nothing), and sizes are
compared with the file before anything is copied.
"""

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.predictors.predictor import Matrix, PredictorLayer

_NAME = re.compile(r"model_(\d{1,6})\.pt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_CONFIG_BYTES = 1 << 20


def is_powerinfer(folder: Path) -> bool:
    """Whether a folder holds predictors by these names."""
    return folder.is_dir() and any(_NAME.fullmatch(path.name) for path in folder.iterdir())


def load_powerinfer(folder: Path, spec: ModelSpec) -> tuple[PredictorLayer, ...]:
    """Read and check the predictors of every layer.

    Raises:
        CheckpointError: a layer without a file, one too many, a file that is not plain tensors, or
            tensors that do not fit the model; names the file, what it has and what was expected.
    """
    numbers = {int(match[1]) for p in folder.iterdir() if (match := _NAME.fullmatch(p.name))}
    for index in range(spec.n_layers):
        if not (folder / f"model_{index}.pt").is_file():
            raise CheckpointError(
                f"{folder} has no file model_{index}.pt; the model has {spec.n_layers} layers and "
                "each needs one"
            )
    if max(numbers) >= spec.n_layers:
        raise CheckpointError(
            f"{folder} has a file model_{max(numbers)}.pt; the model has {spec.n_layers} layers: "
            "these predictors belong to another model"
        )
    threshold = _threshold(folder / "config.json")
    return tuple(
        _layer(folder / f"model_{index}.pt", spec, threshold) for index in range(spec.n_layers)
    )


def _threshold(path: Path) -> float:
    """The logit from which on a neuron is proposed."""
    if not path.is_file():
        return 0.0
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        value = float(found.get("sparse_threshold", 0.0))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a predictor's config ({error})") from error
    if not math.isfinite(value):
        raise CheckpointError(f"{path}: sparse_threshold is {value}, must be finite")
    return value


def _layer(path: Path, spec: ModelSpec, threshold: float) -> PredictorLayer:
    tensors = _state_dict(path)
    fc1 = _matrix(tensors, "fc1.weight", (None, spec.d_model), path)
    fc2 = _matrix(tensors, "fc2.weight", (spec.n_neurons, fc1.shape[0]), path)
    if fc1.dtype != fc2.dtype:
        fc1, fc2 = fc1.astype(np.float32), fc2.astype(np.float32)
    return PredictorLayer(fc1, fc2, None, relu=True, threshold=threshold, input="residual")


def _state_dict(path: Path) -> Mapping[str, Any]:
    """The tensors of a file by name, unwrapped."""
    _refuse_packed(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - of a foreign file anything may come
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        why = "it holds more than tensors, or is damaged"
        raise CheckpointError(
            f"{path} cannot be read as plain tensors: {why} ({type(error).__name__}: "
            f"{first[:120]}); nothing in it was executed. Save a state dict of fc1.weight and "
            "fc2.weight"
        ) from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{path} holds type {type(found).__name__}, expected a state dict with fc1.weight and "
            "fc2.weight"
        )
    tensors = {str(name).removeprefix("module."): value for name, value in found.items()}
    extra = sorted(set(tensors) - {"fc1.weight", "fc2.weight"})
    if extra:
        raise CheckpointError(
            f"{path} has an entry '{extra[0][:60]}'; a predictor is fc1.weight and fc2.weight, "
            "without biases"
        )
    return tensors


def _refuse_packed(path: Path) -> None:
    """PyTorch stores its archives as they are; a compressed one may unfold without bound."""
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return  # the older format, or nothing at all: torch.load says which
    size = path.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f"{path} unfolds to {claimed} bytes from {size}; a predictor's file is not compressed"
        )


def _matrix(
    tensors: Mapping[str, Any], name: str, shape: tuple[int | None, int], path: Path
) -> Matrix:
    """One matrix as an array; None in a shape is any size of at least 1."""
    tensor = tensors.get(name)
    if not isinstance(tensor, torch.Tensor):
        have = "no tensor" if tensor is None else f"type {type(tensor).__name__} for"
        raise CheckpointError(
            f"{path} has {have} '{name}'; a predictor needs fc1.weight, fc2.weight"
        )
    found = list(tensor.shape)
    fits = len(found) == len(shape) and all(
        size >= 1 and want in (None, size) for size, want in zip(found, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("H" if want is None else str(want) for want in shape)
        raise CheckpointError(f"{path}: '{name}' has shape {found}, expected [{wanted}]")
    if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
        raise CheckpointError(
            f"{path}: '{name}' is {tensor.dtype}, {tensor.layout}; must be dense float32, float16 "
            "or bfloat16"
        )
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise CheckpointError(f"{path}: '{name}' claims more values than the file holds")
    if tensor.dtype == torch.bfloat16:  # numpy has none; float32 holds it exactly
        tensor = tensor.float()
    array: Matrix = np.ascontiguousarray(tensor.detach().numpy())
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise CheckpointError(f"{path}: '{name}' holds {bad} values that are not finite")
    return array
