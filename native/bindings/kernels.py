"""The operators and the CPU variants, as typed functions over numpy arrays.

Called by tests, benches and offline tools; the executors call the same C functions from C. Weight
arrays are float32, float16, uint16 holding bfloat16, or int8 holding rows with their scales
(abi/formats.py: part_bytes(D) bytes each). Nothing here keeps state but `Pool`, which
owns threads. Bad arguments raise ConfigError, a CPU variant this machine lacks BackendError.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.formats import FORMATS
from hotcold.native.bindings._arrays import (
    F32,
    I32,
    U32,
    ActiveLists,
    Weights,
    array,
    ffn_args,
    ffn_scratch,
    gemv_args,
    handle,
    same,
    sign_args,
    vector,
    word,
    writable,
)
from hotcold.native.bindings._ffi import check, lib
from hotcold.native.bindings.pool import Pool, active_cpu_variant, cpu_variants, force_cpu_variant
from hotcold.native.bindings.token_kernels import attention, layernorm, rmsnorm, rotary, sample
from hotcold.native.errors import ConfigError

__all__ = [
    "ActiveList",
    "FfnResult",
    "Pool",
    "active_cpu_variant",
    "attention",
    "cpu_variants",
    "ffn",
    "force_cpu_variant",
    "gemv",
    "layernorm",
    "rmsnorm",
    "rotary",
    "sample",
    "sign",
    "split",
]


def gemv(
    w_RD: Weights,
    x_BD: F32,
    *,
    bias_R: F32 | None = None,
    relu: bool = False,
    add_to: F32 | None = None,
    pool: Pool | None = None,
) -> F32:
    """Dense y = w x (+ bias, clamped at 0 with relu) of at most 32 tokens.

    Rows of w and entries of the bias may be apart, in ascending order. add_to: [B, R] array the
    result is added to and which is returned; not with relu. pool None: the caller's thread alone.
    """
    if w_RD.ndim != 2 or w_RD.strides[1] != w_RD.itemsize or w_RD.strides[0] < 0:
        raise ConfigError(f"w of shape {w_RD.shape} must have contiguous rows in ascending order")
    array("x", x_BD, np.float32, 2)
    rows, (batch, d), dtype = len(w_RD), x_BD.shape, word(w_RD.dtype)
    if FORMATS[dtype].group:
        same("a row of w", w_RD.shape[1], FORMATS[dtype].part_bytes(d))
    else:
        same("a token of x", d, w_RD.shape[1])
    if bias_R is not None:
        if bias_R.dtype != np.float32 or bias_R.ndim != 1 or bias_R.strides[0] < 0:
            raise ConfigError(f"bias is {bias_R.dtype} {bias_R.shape}, must be ascending float32")
        same("bias", bias_R.size, rows)
    y_BR = np.empty((batch, rows), np.float32) if add_to is None else add_to
    writable("add_to", array("add_to", y_BR, np.float32, 2))
    same("add_to", y_BR.size, batch * rows)
    more: dict[str, Any] = {"relu": relu, "accumulate": add_to is not None}
    more["scales"] = FORMATS[dtype].scales(d)
    if bias_R is not None:
        more["bias_R"] = bias_R.ctypes.data
        more["bias_stride"] = bias_R.strides[0] if rows > 1 else 4
    check(lib.hc_gemv(gemv_args(w_RD, dtype, x_BD, y_BR, **more), handle(pool)))
    return y_BR


@dataclass(frozen=True)
class FfnResult:
    """Output of a sparse FFN and what it took: rows times tokens; weight bytes, once a batch.

    up_down_rows: where the gate fired.
    """

    y_BD: F32
    gate_rows: int
    up_down_rows: int
    bytes: int


def ffn(
    records: Weights,
    ids: I32,
    x_BD: F32,
    *,
    members: U32 | None = None,
    gate_KB: F32 | None = None,
    fired_N: NDArray[np.int64] | None = None,
    gated: bool = True,
    biased: bool = False,
    activation: str = "relu",
    threshold: float = 0.0,
    pool: Pool | None = None,
) -> FfnResult:
    """Sparse feed-forward over ascending neuron ids, gate first.

    Args:
        records: [N, E] neuron records in the weights' dtype: gate row, up row (if gated), down
            column of D weights each, the bias's four bytes (if biased), padding.
        ids: ascending neuron ids, K of them.
        x_BD: at most 32 tokens.
        members: bit b of entry k: token b asks for neuron ids[k]; None: all do.
        gate_KB: gate pre-activations, if known; entry [k, b].
        fired_N: counts, raised by the tokens for which each neuron's gate fired.
        gated: False: act(gate . x + bias) down, without up rows.
        biased: records hold the gate's bias.
        activation: a row of abi/activations.h.
        threshold: its t.
        pool: threads; None: the caller's alone. The result does not depend on it.
    """
    batch, d = array("x", x_BD, np.float32, 2).shape
    dtype, size = word(records.dtype), records.itemsize
    needed = (3 if gated else 2) * FORMATS[dtype].part_bytes(d) // size
    _check_records(records, needed + (4 // size if biased else 0))
    n, count = records.shape[0], array("ids", ids, np.int32, 1).size
    vector("members", members, np.uint32, count)
    vector("fired", fired_N, np.int64, n)
    if fired_N is not None:
        writable("fired", fired_N)
    if gate_KB is not None:
        same("gate", array("gate", gate_KB, np.float32, 2).size, count * batch)
    y_BD = np.empty((batch, d), np.float32)
    lists = {"ids": ids, "n_ids": count, "members": members, "gate_KB": gate_KB, "fired_N": fired_N}
    lists |= {"records": records, "n": n, "scratch": ffn_scratch(count, batch)}
    lists |= {"activation": activation, "activation_threshold": threshold}
    bias = needed * size if biased else 0
    width = records.shape[1] * size
    args = ffn_args(dtype, x_BD, y_BD, width, gated, bias, **lists)
    check(lib.hc_ffn(args, handle(pool)))
    return FfnResult(y_BD, args.gate_rows, args.up_down_rows, args.bytes)


def _check_records(records: Weights, needed: int) -> None:
    if records.ndim != 2 or not records.flags.c_contiguous or records.shape[1] < needed:
        raise ConfigError(f"records are {records.shape}; contiguous rows of >= {needed} are needed")


def sign(
    signs_NW: NDArray[np.uint64],
    scale_N: F32,
    x_BD: F32,
    *,
    input_bits: int,
    bias_N: F32 | None = None,
    column_D: F32 | None = None,
    pool: Pool | None = None,
) -> F32:
    """Scores [B, N] of a gate matrix's signs, a bit a weight (ops/sign.c has the formula).

    signs_NW: bit d mod 64 of word d // 64: weight d is positive; other bits 0. At most 32 tokens.
    input_bits: bit planes an input is cut in, 1 to 8. column_D: factor of an input's elements. pool
    None: the caller's thread alone; the result does not depend on it.
    """
    batch, d = array("x", x_BD, np.float32, 2).shape
    n, words = array("signs", signs_NW, np.uint64, 2).shape
    same("words of a row", words, (d + 63) // 64)
    for name, given, size in (("scale", scale_N, n), ("bias", bias_N, n), ("column", column_D, d)):
        vector(name, given, np.float32, size)
    scores_BN = np.empty((batch, n), np.float32)
    planes = np.empty(batch * max(1, input_bits) * words, np.uint64)
    arrays = (signs_NW, scale_N, bias_N, column_D, x_BD, scores_BN)
    args = sign_args(*arrays, input_bits=input_bits, planes_BPW=planes)
    check(lib.hc_sign(args, handle(pool)))
    return scores_BN


@dataclass(frozen=True)
class ActiveList:
    """One device's active neurons of a pass: ascending ids, K of them.

    members: bit b of entry k: token b has neuron ids[k]. gate_KB: scores as gate pre-activations.
    """

    ids: I32
    members: U32
    gate_KB: F32 | None


def split(
    scores_BN: F32, threshold: float, device_N: NDArray[np.int8], *, with_gate: bool = False
) -> list[ActiveList]:
    """Cut predicted scores into one ascending active list per device (score >= threshold).

    At most 32 tokens. device_N: owner of each neuron, 0 or 1. with_gate: copy the scores as gate
    pre-activations.
    """
    array("scores", scores_BN, np.float32, 2)
    vector("device", device_N, np.int8, scores_BN.shape[1])
    lists = ActiveLists(scores_BN, threshold, device_N, with_gate)
    check(lib.hc_split(lists.args))
    return [
        ActiveList(ids, members, gate_KB if with_gate else None)
        for ids, members, gate_KB in lists.found()
    ]
