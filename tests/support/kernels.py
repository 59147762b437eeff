"""Weights and expectations for the tests of CUDA kernels, and which cases there is time for.

HOTCOLD_TEST_SMALL=1 leaves a small case of every kernel, for tools under which all of it takes an
hour (`make sanitize-gpu`).
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.device_kernels import Fitted
from hotcold.runtime.model.checkpoints.quantised import STORED

SMALL = os.environ.get("HOTCOLD_TEST_SMALL") == "1"


def some(cases: list[Any], *kept: int) -> list[Any]:
    """All cases, or those few that a tool as slow as a sanitizer has time for."""
    return [cases[i] for i in kept] if SMALL else cases


DTYPES = some(["float32", "float16", "bfloat16"], 1)
NEURON_DTYPES = some(["float32", "float16", "bfloat16", "int8"], 1, 3)
BATCHES = some([1, 2, 3, 8, 17, 32], 0, 4)


def stored(values: NDArray[Any], dtype: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values as stored in a dtype, and what they then are."""
    if dtype == "bfloat16":
        raw = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return raw, (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    raw = values.astype(dtype)
    return raw, raw.astype(np.float64)


def close(found: NDArray[Any], expected: NDArray[Any], tolerance: float = 1e-5) -> None:
    error = np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)
    assert np.isfinite(found).all()
    assert error < tolerance, error


def rms_normed(x: NDArray[Any], weight: NDArray[Any], eps: float = 1e-5) -> NDArray[Any]:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weight


def guarded(plugin: Any) -> Any:
    """The plug-in; with arrays that have no guards where a sanitizer looks for itself."""
    return Fitted(plugin, bare=True) if SMALL else plugin


def layer_normed(
    x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | float = 0.0, eps: float = 1e-5
) -> NDArray[np.float64]:
    centred = x.astype(np.float64) - x.astype(np.float64).mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return np.asarray(centred / scale * weight + bias)


def packed(
    rng: Any, rows: int, d: int, parts: int, dtype: str
) -> tuple[NDArray[np.uint8], list[NDArray[np.float64]]]:
    """Random parts of neurons side by side as stored in a format, and what they then are."""
    form = STORED[dtype]
    values = (rng.standard_normal((parts, rows, d)) / np.sqrt(d)).astype(np.float32)
    raw = [form.pack(part, "float32") for part in values]
    return np.concatenate(raw, axis=1), [form.unpack(part, d).astype(np.float64) for part in raw]


def table(rng: Any, rows: int, d: int, dtype: str) -> tuple[Any, list[NDArray[np.float64]]]:
    """Records of gate, up and down side by side, and the three as float64."""
    raw, parts = packed(rng, rows, d, 3, dtype)
    return np.pad(raw, ((0, 0), (0, -raw.shape[1] % 64))), parts


def reglu(x: Any, parts: Any, ids: Any, on_KB: Any) -> NDArray[np.float64]:
    gate, up, down = (part[ids] for part in parts)
    c_BK = np.maximum(x @ gate.T, 0) * (x @ up.T) * on_KB.T
    return np.asarray(c_BK @ down)


def relu_table(rng: Any, rows: int, d: int, dtype: str) -> tuple[Any, int, list[NDArray[Any]]]:
    """Records of gate, down and bias; the bias's offset; gate, down, bias as float64."""
    raw, parts = packed(rng, rows, d, 2, dtype)
    bias = (0.3 * rng.standard_normal(rows)).astype(np.float32)
    records = np.concatenate([raw, bias.view(np.uint8).reshape(rows, 4)], axis=1)
    records = np.pad(records, ((0, 0), (0, -records.shape[1] % 64)))
    return records, raw.shape[1], [*parts, bias.astype(np.float64)]
