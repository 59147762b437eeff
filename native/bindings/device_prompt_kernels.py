"""The GPU plug-in's operators of dense prompts, one by one on numpy arrays: for tests.

As `device_kernels.py` for the operators of a pass; prompts do not come through here.
cuda/prompt/dense.h says what is computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings._arrays import F32, attention_args
from hotcold.native.bindings._ffi import new
from hotcold.native.bindings.device_kernels import _operate


@dataclass(frozen=True)
class Neurons:
    """How a product treats rows that are gate rows of neurons: y = act(gate) * up.

    Args:
        up_bytes: from a gate row to its up row; None: there is none, y = act(gate + bias).
        bias_bytes: from a gate row to its bias; 0: none.
        mask_TN: which of the layer's neurons a token may fire; None: all.
        ids_R: the rows' neurons.
        activation, threshold: a row of abi/activations.h, and its t.
    """

    up_bytes: int | None
    bias_bytes: int = 0
    mask_TN: NDArray[np.bool_] | None = None
    ids_R: NDArray[np.int32] | None = None
    activation: str = "relu"
    threshold: float = 0.0


def product(
    plugin: Any,
    w: NDArray[Any],
    dtype: str,
    x_TK: F32,
    *,
    rows: int | None = None,
    offset: int = 0,
    norm_D: F32 | None = None,
    norm_bias_D: F32 | None = None,
    kind: str = "rms",
    scale_R: F32 | None = None,
    add_to: F32 | None = None,
    relu: bool = False,
    neurons: Neurons | None = None,
) -> tuple[F32, int]:
    """y_TR = x W^T, and how many entries of neurons fired.

    W is a matrix of rows, or of records with a row at byte `offset`; with `rows` it is transposed:
    a line for each element of x, of so many columns. bfloat16 comes as uint16; norm_D norms x, as
    device_kernels.norm does.
    """
    width = len(w) if rows is None else rows
    y_TR = np.full((len(x_TK), width), np.nan, np.float32) if add_to is None else add_to.copy()
    more: dict[str, Any] = {"epilogue": "relu" if relu else "store"}
    if add_to is not None:
        more["epilogue"] = "add"
    if neurons is not None:
        more = {"epilogue": "plain" if neurons.up_bytes is None else "neuron"}
        more |= {"up_bytes": neurons.up_bytes or 0, "bias_bytes": neurons.bias_bytes}
        more |= {"activation": neurons.activation, "threshold": neurons.threshold}
        more["ids_R"] = neurons.ids_R
        if neurons.mask_TN is not None:
            mask = np.ascontiguousarray(neurons.mask_TN, np.uint8)
            more |= {"mask_TN": mask, "n": mask.shape[1]}
    a = _product_args(w, dtype, x_TK, rows, offset, y_TR=y_TR, scale_R=scale_R, **more)
    norms = {"norm_D": norm_D, "norm_bias_D": norm_bias_D, "norm_kind": kind}
    _operate(plugin, "product", a, 0, eps=1e-5, **norms)
    return y_TR, int(a.fired)


def proposals(
    plugin: Any,
    w_RK: NDArray[Any],
    dtype: str,
    x_TK: F32,
    threshold: float,
    *,
    scale_R: F32 | None = None,
    bias_R: F32 | None = None,
) -> NDArray[np.bool_]:
    """Where the product reaches the threshold, [T, R]."""
    y_TR = np.zeros((len(x_TK), len(w_RK)), np.float32)
    bits = np.zeros((len(x_TK), -(-len(w_RK) // 8)), np.uint8)
    more = {"y_TR": y_TR, "bits_T": bits, "scale_R": scale_R, "bias_R": bias_R}
    more |= {"epilogue": "mask", "threshold": threshold}
    _operate(plugin, "product", _product_args(w_RK, dtype, x_TK, None, 0, **more), 0)
    return np.unpackbits(bits, axis=1, count=len(w_RK), bitorder="little").astype(bool)


def _product_args(
    w: NDArray[Any], dtype: str, x_TK: F32, rows: int | None, offset: int, **more: Any
) -> Any:
    tokens, k = x_TK.shape
    sizes = {"rows": len(w) if rows is None else rows, "tokens": tokens, "k": k}
    more |= {"stride_bytes": w.strides[0], "offset_bytes": offset, "transposed": rows is not None}
    return new("hc_product_args", w=w.ctypes.data, dtype=dtype, x_TK=x_TK, **sizes, **more)


def attention(
    plugin: Any,
    qkv_TQ: F32,
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    heads: int,
    position: int,
    cos_PE: F32,
    sin_PE: F32,
) -> F32:
    """Rotate, append to the caches [kv_heads, context, head_dim] from `position` on, attend.

    Caches are float32 or float16 and changed in place. out [T, H * E].
    """
    out = np.full((len(qkv_TQ), heads * k_cache.shape[2]), np.nan, np.float32)
    first = np.array([position], np.int32)
    a = attention_args(qkv_TQ, k_cache, v_cache, heads, first, out)
    more = {"cos_PE": cos_PE, "sin_PE": sin_PE, "kv_f16": k_cache.dtype == np.float16}
    _operate(plugin, "prompt_attention", a, 0, **more)
    return out
