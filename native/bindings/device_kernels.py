"""The GPU plug-in's operators one by one, on numpy arrays: for tests and `bench kernels`.

Every call copies its arrays to the device and back, so the time to look at is the one returned with
repeat, which is of the kernel alone. A plug-in is what open_plugin() returns, or a WithVariant.
Passes do not come through here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import DeviceOpKind, active_bytes, active_ids, active_members
from hotcold.native.abi.names import DTYPE_BYTES, DTYPES, NORMS, WHEN
from hotcold.native.bindings._ffi import check, ffi, lib, pointer


class SignArrays(Protocol):
    """A predictor's layer of the form "sign", as a SignLayer holds it."""

    signs_NW: NDArray[np.uint64]
    scale_N: NDArray[np.float32]
    bias_N: NDArray[np.float32] | None
    column_D: NDArray[np.float32]
    input_bits: int


F32 = NDArray[np.float32]
ARGS = {  # of the kinds that do not have arguments of their own name
    "norm": "gemv",
    "prompt_norm": "gemv",
    "prompt_sign": "sign",
    "prompt_attention": "attention",
}


def hold_graphs(plugin: Any, nodes: int, graphs: int) -> None:
    """Take the device memory of graphs of so many kernels each until this process ends."""
    op = ffi.new("hc_device_op *")
    op.kind, op.repeat = DeviceOpKind.HOLD, nodes
    for _ in range(graphs):
        check(lib.hc_device_operate(plugin, op))


def rate_of_gaps(plugin: Any, nodes: int, repeat: int) -> float:
    """Seconds that a node of a captured graph takes which does nothing (cuda/rates.cu)."""
    return _rate(plugin, DeviceOpKind.GAPS, nodes, repeat)


def rate_of_exchange(plugin: Any, width: int, layers: int, repeat: int) -> float:
    """Seconds that an exchange of rows of `width` adds to each layer of a captured graph.

    A host thread answers at once, so this is the least that one can take (cuda/rates.cu).
    """
    return _rate(plugin, DeviceOpKind.EXCHANGE, layers, repeat, width)


def _rate(plugin: Any, kind: int, count: int, repeat: int, width: int = 0) -> float:
    op, a, seconds = ffi.new("hc_device_op *"), ffi.new("hc_gemv_args *"), ffi.new("float *")
    a.d = width
    op.kind, op.gemv, op.copies, op.repeat, op.seconds = kind, a, count, repeat, seconds
    check(lib.hc_device_operate(plugin, op))
    return float(seconds[0])


@dataclass(frozen=True)
class WithVariant:
    """A plug-in and a compiled CUDA variant, whose kernels are asked first."""

    plugin: Any
    variant: Path


@dataclass(frozen=True)
class Bare:
    """A plug-in whose operators get arrays with nothing around and nothing in them.

    For tools that report every access out of bounds and every read of what nobody wrote; otherwise
    the plug-in guards its arrays itself (cuda/operate/operate.h).
    """

    plugin: Any


def _operate(plugin: Any, kind: str, args: Any, repeat: int, **more: Any) -> float:
    """Run hc_device_operate; median seconds of the repeats, 0 without any."""
    op = ffi.new("hc_device_op *")
    op.kind, op.repeat = DeviceOpKind[kind.upper()], repeat
    setattr(op, ARGS.get(kind, kind), args)
    seconds = ffi.new("float *")
    op.seconds = seconds
    path = None
    if isinstance(plugin, Bare):
        op.bare, plugin = 1, plugin.plugin
    if isinstance(plugin, WithVariant):
        op.variant = path = ffi.new("char[]", str(plugin.variant).encode())
        plugin = plugin.plugin
    for name, value in more.items():
        if isinstance(value, np.ndarray):
            kind = "int32_t *" if value.dtype == np.int32 else "float *"
            setattr(op, name, pointer(value, kind))
        else:
            setattr(op, name, value)
    check(lib.hc_device_operate(plugin, op))
    del path  # alive until here
    return float(seconds[0])


def gemv(
    plugin: Any,
    w_RD: NDArray[Any],
    dtype: str,
    x_BD: F32,
    *,
    scale_R: F32 | None = None,
    bias_R: F32 | None = None,
    norm_D: F32 | None = None,
    eps: float = 1e-5,
    add_to: F32 | None = None,
    relu: bool = False,
    normed_2BD: F32 | None = None,
    when: tuple[str, int] = ("always", 0),
    repeat: int = 0,
    copies: int = 1,
) -> tuple[F32, float]:
    """y_BR = W x (W with a row stride of its own allowed), and seconds a launch.

    Timed launches go round over copies of W, so that none is in a cache.

    bfloat16 weights come as uint16. scale_R belongs to int8 weights; norm_D norms x on the way in,
    and normed_2BD receives it then: as it is on the device and as it is in host memory. when: WHEN,
    and the rows of logits that the pass asks for; of one row y_BR[0] is the last token's.
    """
    y_BR = np.zeros((len(x_BD), len(w_RD)), np.float32) if add_to is None else add_to.copy()
    a = _gemv_args(w_RD, dtype, x_BD, y_BR, bias_R)
    a.relu = relu
    a.accumulate = add_to is not None
    more: dict[str, Any] = {"when": WHEN[when[0]], "head_rows": when[1], "eps": eps}
    arrays = {"norm_D": norm_D, "scale_R": scale_R, "normed_BD": normed_2BD}
    more |= {name: array for name, array in arrays.items() if array is not None}
    return y_BR, _operate(plugin, "gemv", a, repeat, copies=copies, **more)


def members(
    plugin: Any,
    w_RD: NDArray[Any],
    dtype: str,
    x_BD: F32,
    threshold: float,
    *,
    scale_R: F32 | None = None,
    bias_R: F32 | None = None,
) -> NDArray[np.bool_]:
    """Which rows of W x (arguments as of gemv) reach the threshold, [B, R]."""
    batch, rows = len(x_BD), len(w_RD)
    words, y_BR = np.zeros(rows, np.uint32), np.zeros((batch, rows), np.float32)
    a = _gemv_args(w_RD, dtype, x_BD, y_BR, bias_R)
    more: dict[str, Any] = {} if scale_R is None else {"scale_R": scale_R}
    more["members_R"] = pointer(words, "uint32_t *")
    _operate(plugin, "gemv", a, 0, threshold=threshold, **more)
    return (words >> np.arange(batch, dtype=np.uint32)[:, None] & 1) > 0


def _gemv_args(w_RD: NDArray[Any], dtype: str, x_BD: F32, y_BR: F32, bias_R: F32 | None) -> Any:
    """An hc_gemv_args of arrays that outlive it."""
    (batch, d), rows = x_BD.shape, len(w_RD)
    a = ffi.new("hc_gemv_args *")
    a.w, a.stride_bytes = ffi.cast("void *", w_RD.ctypes.data), w_RD.strides[0]
    a.rows, a.d, a.dtype, a.batch = rows, d, DTYPES[dtype], batch
    a.x_BD, a.x_stride = pointer(x_BD, "float *"), d
    a.y_BR, a.y_stride = pointer(y_BR, "float *"), rows
    a.bias_R = pointer(bias_R, "float *")
    return a


def ffn(
    plugin: Any,
    records: NDArray[np.uint8],
    dtype: str,
    x_BD: F32,
    bounds_C: NDArray[np.int32],
    ids: NDArray[np.int32] | None = None,
    members: NDArray[np.uint32] | None = None,
    repeat: int = 0,
    gated: bool = True,
    bias_offset: int = 0,
    copies: int = 1,
) -> tuple[F32, int, float]:
    """Sparse FFN over rows of a table [rows, record_bytes] with gate, up, down side by side.

    Not gated: gate and down side by side, and at bias_offset (bytes, 0: none) the gate's bias.

    Returns:
        y_BD, neurons times tokens that fired, seconds of the three kernels.
    """
    (batch, d), size = x_BD.shape, DTYPE_BYTES[dtype]
    y_BD = np.full((batch, d), np.nan, np.float32)
    a = ffi.new("hc_ffn_args *")
    a.records, a.record_bytes = ffi.cast("void *", records.ctypes.data), records.strides[0]
    a.gate_offset, a.up_offset, a.down_offset = 0, d * size, 2 * d * size
    if not gated:
        a.up_offset, a.down_offset, a.bias_offset = -1, d * size, bias_offset
    a.d, a.dtype, a.batch = d, DTYPES[dtype], batch
    if ids is not None:
        a.ids, a.n_ids = pointer(ids, "int32_t *"), len(ids)
        a.members = pointer(members, "uint32_t *")
    a.x_BD, a.y_BD = pointer(x_BD, "float *"), pointer(y_BD, "float *")
    cut = {"ffn_bounds": bounds_C, "ffn_chunks": len(bounds_C) - 1}
    seconds = _operate(plugin, "ffn", a, repeat, copies=copies, **cut)
    return y_BD, int(a.up_down_rows), seconds


def split(
    plugin: Any, scores_BN: F32, threshold: float, device_N: NDArray[np.int8], repeat: int = 0
) -> tuple[list[tuple[NDArray[np.int32], NDArray[np.uint32]]], float]:
    """(ids, members) of the hot list (rows of the hot table) and the cold one (neuron ids)."""
    batch, n = scores_BN.shape
    a = ffi.new("hc_split_args *")
    a.scores_BN, a.n, a.batch = pointer(scores_BN, "float *"), n, batch
    a.threshold, a.device_N = threshold, pointer(device_N, "int8_t *")
    lists = [np.zeros(active_bytes(n, 0), np.uint8) for _ in a.out]
    for device, data in enumerate(lists):
        a.out[device] = ffi.cast("hc_active *", data.ctypes.data)
        a.out[device].capacity = n
    seconds = _operate(plugin, "split", a, repeat)
    found = []
    for device, data in enumerate(lists):
        count = int(a.out[device].count)
        ids = data[active_ids() :].view(np.int32)[:count]
        found.append((ids, data[active_members(n) :].view(np.uint32)[:count]))
    return found, seconds


def attention(
    plugin: Any,
    qkv_BQ: F32,
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    heads: int,
    position_B: NDArray[np.int32],
    cos_PE: F32 | None,
    sin_PE: F32 | None,
    repeat: int = 0,
    copies: int = 1,
) -> tuple[F32, float]:
    """Rotate (with tables), append to the caches [kv_heads, context, head_dim] in place, attend.

    Caches are float32 or float16.

    Returns:
        out [B, H * E], and seconds a launch.
    """
    kv_heads, context, head_dim = k_cache.shape
    out = np.full((len(qkv_BQ), heads * head_dim), np.nan, np.float32)
    a = ffi.new("hc_attention_args *")
    a.q, a.q_stride = pointer(qkv_BQ, "float *"), qkv_BQ.shape[1]
    a.k_cache, a.v_cache = pointer(k_cache, "float *"), pointer(v_cache, "float *")
    a.heads, a.kv_heads, a.head_dim = heads, kv_heads, head_dim
    a.batch, a.context = len(qkv_BQ), context
    a.position_B, a.out = pointer(position_B, "int32_t *"), pointer(out, "float *")
    more: dict[str, Any] = {} if cos_PE is None else {"cos_PE": cos_PE, "sin_PE": sin_PE}
    more["kv_f16"] = k_cache.dtype == np.float16
    seconds = _operate(plugin, "attention", a, repeat, copies=copies, **more)
    return out, seconds


def norm(
    plugin: Any,
    x_BD: F32,
    weight_D: F32,
    bias_D: F32 | None = None,
    kind: str = "layer",
    eps: float = 1e-5,
    host_BD: F32 | None = None,
    prompt: bool = False,
) -> F32:
    """A norm of the kind "rms" or "layer"; a bias belongs to the latter. y_BD, also in host_BD.

    prompt: by the kernel of dense prompts, for any number of rows.
    """
    y_BD = np.full_like(x_BD, np.nan)
    a = ffi.new("hc_gemv_args *")
    a.batch, a.d = x_BD.shape
    a.x_BD, a.y_BR = pointer(x_BD, "float *"), pointer(y_BD, "float *")
    arrays = {"norm_bias_D": bias_D, "normed_BD": host_BD}
    more = {name: array for name, array in arrays.items() if array is not None}
    name = "prompt_norm" if prompt else "norm"
    _operate(plugin, name, a, 0, norm_D=weight_D, eps=eps, norm_kind=NORMS[kind], **more)
    return y_BD


def sign(
    plugin: Any,
    layer: SignArrays,
    x_BD: F32,
    threshold: float,
    repeat: int = 0,
    prompt: bool = False,
) -> tuple[NDArray[np.bool_], float]:
    """Which neurons a layer of the form "sign" proposes, [B, N], and seconds of both kernels.

    prompt: by the kernels of dense prompts, for any number of rows.
    """
    n = len(layer.signs_NW)
    scores_BN = np.zeros((len(x_BD), n), np.float32)
    a = ffi.new("hc_sign_args *")
    a.signs_NW, a.scale_N = pointer(layer.signs_NW, "uint64_t *"), pointer(layer.scale_N, "float *")
    a.bias_N, a.column_D = pointer(layer.bias_N, "float *"), pointer(layer.column_D, "float *")
    a.n, a.d, a.batch, a.input_bits = n, x_BD.shape[1], len(x_BD), layer.input_bits
    a.x_BD, a.scores_BN = pointer(x_BD, "float *"), pointer(scores_BN, "float *")
    name = "prompt_sign" if prompt else "sign"
    seconds = _operate(plugin, name, a, repeat, threshold=threshold)
    return scores_BN > 0, seconds
