"""The GPU plug-in's operators one by one, on numpy arrays: for tests and `bench kernels`.

Every call copies its arrays to the device and back, so the time to look at is the one returned with
repeat, which is of the kernel alone. A plug-in is what open_plugin() returns, or a Fitted.
Passes do not come through here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import DeviceOpKind
from hotcold.native.bindings._arrays import (
    F32,
    ActiveLists,
    attention_args,
    ffn_args,
    gemv_args,
    sign_args,
)
from hotcold.native.bindings._ffi import check, ffi, lib, new

ARGS = {  # of the kinds that do not have arguments of their own name
    "norm": "gemv",
    "prompt_norm": "gemv",
    "prompt_sign": "sign",
    "prompt_attention": "attention",
    "gaps": "gemv",
    "exchange": "gemv",
}


def hold_graphs(plugin: Any, nodes: int, graphs: int) -> None:
    """Take the device memory of graphs of so many kernels each until this process ends."""
    op = new("hc_device_op", kind=DeviceOpKind.HOLD, repeat=nodes)
    for _ in range(graphs):
        check(lib.hc_device_operate(plugin, op))


def rate_of_gaps(plugin: Any, nodes: int, repeat: int) -> float:
    """Seconds that a node of a captured graph takes which does nothing (cuda/rates.cu)."""
    return _operate(plugin, "gaps", new("hc_gemv_args"), repeat, copies=nodes)


def rate_of_exchange(plugin: Any, width: int, layers: int, repeat: int) -> float:
    """Seconds that an exchange of rows of `width` adds to each layer of a captured graph.

    A host thread answers at once, so this is the least that one can take (cuda/rates.cu).
    """
    return _operate(plugin, "exchange", new("hc_gemv_args", d=width), repeat, copies=layers)


@dataclass(frozen=True)
class Fitted:
    """A plug-in whose operators run otherwise; variant: compiled, its kernels are asked first.

    bare: arrays get nothing around and nothing in them, for tools that report every access out of
    bounds and every read of what nobody wrote; otherwise the plug-in guards its arrays itself
    (cuda/operate/operate.h).
    """

    plugin: Any
    variant: Path | None = None
    bare: bool = False


def _operate(plugin: Any, kind: str, args: Any, repeat: int, **more: Any) -> float:
    """Run hc_device_operate; median seconds of the repeats, 0 without any."""
    more[ARGS.get(kind, kind)] = args
    if isinstance(plugin, Fitted):
        more |= {"variant": plugin.variant, "bare": plugin.bare}
        plugin = plugin.plugin
    seconds = ffi.new("float *")
    code = DeviceOpKind[kind.upper()]
    op = new("hc_device_op", kind=code, repeat=repeat, seconds=seconds, **more)
    check(lib.hc_device_operate(plugin, op))
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
    sums = {"bias_R": bias_R, "relu": relu, "accumulate": add_to is not None}
    a = gemv_args(w_RD, dtype, x_BD, y_BR, **sums)
    more: dict[str, Any] = {"norm_D": norm_D, "scale_R": scale_R, "normed_BD": normed_2BD}
    more |= {"eps": eps, "when": when[0], "head_rows": when[1]}
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
    a = gemv_args(w_RD, dtype, x_BD, y_BR, bias_R=bias_R)
    _operate(plugin, "gemv", a, 0, threshold=threshold, scale_R=scale_R, members_R=words)
    return (words >> np.arange(batch, dtype=np.uint32)[:, None] & 1) > 0


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
    bias: int = 0,
    activation: str = "relu",
    threshold: float = 0.0,
    copies: int = 1,
) -> tuple[F32, int, float]:
    """Sparse FFN over rows of a table [rows, bytes of a record] with gate, up, down side by side.

    Not gated: gate and down side by side, and from byte `bias` on (0: none) the gate's bias.
    activation, threshold: a row of abi/activations.h, and its t.

    Returns:
        y_BD, neurons times tokens that fired, seconds of the three kernels.
    """
    y_BD = np.full(x_BD.shape, np.nan, np.float32)
    lists = {"ids": ids, "n_ids": 0 if ids is None else len(ids), "members": members}
    lists |= {"records": records.ctypes.data}
    more = {**lists, "activation": activation, "activation_threshold": threshold}
    a = ffn_args(dtype, x_BD, y_BD, records.strides[0], gated, 0 if gated else bias, **more)
    cut = {"ffn_bounds": bounds_C, "ffn_chunks": len(bounds_C) - 1}
    seconds = _operate(plugin, "ffn", a, repeat, copies=copies, **cut)
    return y_BD, int(a.up_down_rows), seconds


def split(
    plugin: Any, scores_BN: F32, threshold: float, device_N: NDArray[np.int8], repeat: int = 0
) -> tuple[list[tuple[NDArray[np.int32], NDArray[np.uint32]]], float]:
    """(ids, members) of the hot list (rows of the hot table) and the cold one (neuron ids)."""
    lists = ActiveLists(scores_BN, threshold, device_N)
    seconds = _operate(plugin, "split", lists.args, repeat)
    return [(ids, members) for ids, members, _ in lists.found()], seconds


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
    out = np.full((len(qkv_BQ), heads * k_cache.shape[2]), np.nan, np.float32)
    a = attention_args(qkv_BQ, k_cache, v_cache, heads, position_B, out)
    more = {"cos_PE": cos_PE, "sin_PE": sin_PE, "kv_f16": k_cache.dtype == np.float16}
    return out, _operate(plugin, "attention", a, repeat, copies=copies, **more)


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
    batch, d = x_BD.shape
    a = new("hc_gemv_args", batch=batch, d=d, x_BD=x_BD, y_BR=y_BD)
    more = {"norm_D": weight_D, "norm_bias_D": bias_D, "normed_BD": host_BD}
    name = "prompt_norm" if prompt else "norm"
    _operate(plugin, name, a, 0, eps=eps, norm_kind=kind, **more)
    return y_BD


def sign(
    plugin: Any, layer: Any, x_BD: F32, threshold: float, repeat: int = 0, prompt: bool = False
) -> tuple[NDArray[np.bool_], float]:
    """Which neurons a SignLayer proposes, [B, N], and seconds of both kernels.

    prompt: by the kernels of dense prompts, for any number of rows.
    """
    scores_BN = np.zeros((len(x_BD), len(layer.signs_NW)), np.float32)
    rows = (layer.signs_NW, layer.scale_N, layer.bias_N, layer.column_D)
    a = sign_args(*rows, x_BD, scores_BN, input_bits=layer.input_bits)
    name = "prompt_sign" if prompt else "sign"
    seconds = _operate(plugin, name, a, repeat, threshold=threshold)
    return scores_BN > 0, seconds
