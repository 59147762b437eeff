"""The GPU plug-in's operators of dense prompts, one by one on numpy arrays: for tests.

As `device_kernels.py` for the operators of a pass; prompts do not come through here.
cuda/prompt/dense.h says what is computed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPES, EPILOGUES, NORMS
from hotcold.native.bindings._ffi import ffi, pointer
from hotcold.native.bindings.device_kernels import F32, _operate


@dataclass(frozen=True)
class Neurons:
    """How a product treats rows that are gate rows of neurons: y = relu(gate) * up.

    Args:
        up_bytes: from a gate row to its up row; None: there is none, y = relu(gate + bias).
        bias_bytes: from a gate row to its bias; 0: none.
        mask_TN: which of the layer's neurons a token may fire; None: all.
        ids_R: the rows' neurons.
    """

    up_bytes: int | None
    bias_bytes: int = 0
    mask_TN: NDArray[np.bool_] | None = None
    ids_R: NDArray[np.int32] | None = None


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
    a = _product_args(w, dtype, x_TK, rows, offset)
    y_TR = np.full((len(x_TK), a.rows), np.nan, np.float32) if add_to is None else add_to.copy()
    a.y_TR, a.scale_R = pointer(y_TR, "float *"), pointer(scale_R, "float *")
    a.epilogue = EPILOGUES["add" if add_to is not None else "relu" if relu else "store"]
    mask = None
    if neurons is not None:
        a.epilogue = EPILOGUES["plain" if neurons.up_bytes is None else "neuron"]
        a.up_bytes, a.bias_bytes = neurons.up_bytes or 0, neurons.bias_bytes
        a.ids_R = pointer(neurons.ids_R, "int32_t *")
        if neurons.mask_TN is not None:
            mask = np.ascontiguousarray(neurons.mask_TN, np.uint8)
            a.mask_TN, a.n = pointer(mask, "uint8_t *"), mask.shape[1]
    arrays = {"norm_D": norm_D, "norm_bias_D": norm_bias_D}
    more = {name: array for name, array in arrays.items() if array is not None}
    _operate(plugin, "product", a, 0, eps=1e-5, norm_kind=NORMS[kind], **more)
    del mask  # alive until here
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
    a = _product_args(w_RK, dtype, x_TK, None, 0)
    y_TR = np.zeros((len(x_TK), len(w_RK)), np.float32)
    bits = np.zeros((len(x_TK), -(-len(w_RK) // 8)), np.uint8)
    a.y_TR, a.bits_T = pointer(y_TR, "float *"), pointer(bits, "uint8_t *")
    a.scale_R, a.bias_R = pointer(scale_R, "float *"), pointer(bias_R, "float *")
    a.epilogue, a.threshold = EPILOGUES["mask"], threshold
    _operate(plugin, "product", a, 0)
    return np.unpackbits(bits, axis=1, count=len(w_RK), bitorder="little").astype(bool)


def _product_args(w: NDArray[Any], dtype: str, x_TK: F32, rows: int | None, offset: int) -> Any:
    """An hc_product_args of arrays that outlive it."""
    a = ffi.new("hc_product_args *")
    a.w, a.stride_bytes = ffi.cast("void *", w.ctypes.data), w.strides[0]
    a.offset_bytes, a.dtype = offset, DTYPES[dtype]
    a.rows, a.transposed = len(w) if rows is None else rows, rows is not None
    a.tokens, a.k = x_TK.shape
    a.x_TK = pointer(x_TK, "float *")
    return a


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
    kv_heads, context, head_dim = k_cache.shape
    out = np.full((len(qkv_TQ), heads * head_dim), np.nan, np.float32)
    first = np.array([position], np.int32)
    a = ffi.new("hc_attention_args *")
    a.q, a.q_stride = pointer(qkv_TQ, "float *"), qkv_TQ.shape[1]
    a.k_cache = ffi.cast("float *", k_cache.ctypes.data)
    a.v_cache = ffi.cast("float *", v_cache.ctypes.data)
    a.heads, a.kv_heads, a.head_dim = heads, kv_heads, head_dim
    a.batch, a.context = len(qkv_TQ), context
    a.position_B, a.out = pointer(first, "int32_t *"), pointer(out, "float *")
    more = {"cos_PE": cos_PE, "sin_PE": sin_PE, "kv_f16": int(k_cache.dtype == np.float16)}
    _operate(plugin, "prompt_attention", a, 0, **more)
    return out
