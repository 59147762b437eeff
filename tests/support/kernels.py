"""Weights and expectations for the tests of CUDA kernels, and which cases there is time for.

HOTCOLD_TEST_SMALL=1 leaves a small case of every kernel, for tools under which all of it takes an
hour (`make sanitize-gpu`).
"""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.device_kernels import Fitted

SMALL = os.environ.get("HOTCOLD_TEST_SMALL") == "1"


def some(cases: list[Any], *kept: int) -> list[Any]:
    """All cases, or those few that a tool as slow as a sanitizer has time for."""
    return [cases[i] for i in kept] if SMALL else cases


DTYPES = some(["float32", "float16", "bfloat16"], 1)
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


def table(rng: Any, rows: int, d: int, dtype: str) -> tuple[Any, list[NDArray[np.float64]]]:
    """Records of gate, up and down side by side, and the three as float64."""
    raw, values = stored(rng.standard_normal((rows, 3, d)) / np.sqrt(d), dtype)
    size = raw.dtype.itemsize
    record_bytes = -(-3 * d * size // 64) * 64
    records = np.zeros((rows, record_bytes), np.uint8)
    records[:, : 3 * d * size] = raw.reshape(rows, -1).view(np.uint8)
    return records, [values[:, part] for part in range(3)]


def reglu(x: Any, parts: Any, ids: Any, on_KB: Any) -> NDArray[np.float64]:
    gate, up, down = (part[ids] for part in parts)
    c_BK = np.maximum(x @ gate.T, 0) * (x @ up.T) * on_KB.T
    return np.asarray(c_BK @ down)


def relu_table(rng: Any, rows: int, d: int, dtype: str) -> tuple[Any, int, list[NDArray[Any]]]:
    """Records of gate, down and bias; the bias's offset; gate, down, bias as float64."""
    raw, values = stored(rng.standard_normal((rows, 2, d)) / np.sqrt(d), dtype)
    row = raw.dtype.itemsize * d
    records = np.zeros((rows, -(-(2 * row + 4) // 64) * 64), np.uint8)
    records[:, : 2 * row] = raw.reshape(rows, -1).view(np.uint8)
    bias = (0.3 * rng.standard_normal(rows)).astype(np.float32)
    records[:, 2 * row : 2 * row + 4] = bias.view(np.uint8).reshape(rows, 4)
    return records, 2 * row, [values[:, 0], values[:, 1], bias.astype(np.float64)]
