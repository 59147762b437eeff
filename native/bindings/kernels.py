"""The operators and the CPU variants, as typed functions over numpy arrays.

Called by tests, benches and offline tools; the executors call the same C functions from C. Weight
arrays are float32, float16, or uint16 holding bfloat16. Nothing here keeps state but `Pool`, which
owns threads. Bad arguments raise ConfigError, a CPU variant this machine lacks BackendError.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import MAX_BATCH, MAX_DEVICES
from hotcold.native.bindings._arrays import (
    F32,
    I32,
    U32,
    Weights,
    array,
    code,
    ffn_scratch,
    handle,
    same,
    writable,
)
from hotcold.native.bindings._ffi import check, ffi, lib, pointer
from hotcold.native.bindings.pool import (
    CPointer,
    Pool,
    active_cpu_variant,
    cpu_variants,
    force_cpu_variant,
)
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
    """Dense y = w x (+ bias, clamped at 0 with relu); rows of w may be apart, x is contiguous.

    Args:
        w_RD: weights; each row contiguous.
        x_BD: at most 32 tokens.
        bias_R: added to every token's result; entries may be apart, in ascending order.
        relu: clamp the result at 0; not with add_to.
        add_to: [B, R] array the result is added to and which is returned.
        pool: threads; None: the caller's alone.
    """
    if w_RD.ndim != 2 or w_RD.strides[1] != w_RD.itemsize or w_RD.strides[0] < 0:
        raise ConfigError(f"w of shape {w_RD.shape} must have contiguous rows in ascending order")
    array("x", x_BD, np.float32, 2)
    rows, d = w_RD.shape
    batch = x_BD.shape[0]
    same("a token of x", x_BD.shape[1], d)
    if bias_R is not None:
        if bias_R.dtype != np.float32 or bias_R.ndim != 1 or bias_R.strides[0] < 0:
            raise ConfigError(f"bias is {bias_R.dtype} {bias_R.shape}, must be ascending float32")
        same("bias", bias_R.size, rows)
    y_BR = np.empty((batch, rows), np.float32) if add_to is None else add_to
    writable("add_to", array("add_to", y_BR, np.float32, 2))
    same("add_to", y_BR.size, batch * rows)
    args = ffi.new("hc_gemv_args *")
    args.w = ffi.cast("void *", w_RD.ctypes.data)
    args.stride_bytes = w_RD.strides[0] if rows > 1 else d * w_RD.itemsize
    args.rows, args.d, args.dtype, args.batch = rows, d, code(w_RD.dtype), batch
    args.x_BD, args.x_stride = pointer(x_BD, "float *"), d
    args.y_BR, args.y_stride = pointer(y_BR, "float *"), rows
    if bias_R is not None:
        args.bias_R = ffi.cast("float *", bias_R.ctypes.data)
        args.bias_stride = bias_R.strides[0] if rows > 1 else 4
    args.relu, args.accumulate = relu, add_to is not None
    check(lib.hc_gemv(args, handle(pool)))
    return y_BR


@dataclass(frozen=True)
class FfnResult:
    """Output of a sparse FFN and what it took.

    Attributes:
        y_BD: float32 output of the listed neurons.
        gate_rows: gate rows times tokens evaluated.
        up_down_rows: neurons times tokens whose gate fired (without gating: down columns used).
        bytes: weight bytes touched; a row counts once a batch.
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
    pool: Pool | None = None,
) -> FfnResult:
    """Sparse feed-forward over ascending neuron ids, gate first: ReGLU, or plain ReLU.

    Args:
        records: [N, E] neuron records in the weights' dtype: gate row, up row (if gated), down
            column of D elements each, the bias's four bytes (if biased), padding.
        ids: ascending neuron ids, K of them.
        x_BD: at most 32 tokens.
        members: bit b of entry k: token b asks for neuron ids[k]; None: all do.
        gate_KB: gate pre-activations, if known; entry [k, b].
        fired_N: counts, raised by the tokens for which each neuron's gate fired.
        gated: False: relu(gate . x + bias) down, without up rows.
        biased: records hold the gate's bias.
        pool: threads; None: the caller's alone. The result does not depend on it.
    """
    batch, d = array("x", x_BD, np.float32, 2).shape
    needed = (3 if gated else 2) * d
    _check_records(records, needed + (4 // records.itemsize if biased else 0))
    _check_ffn(records, batch, ids, members=members, gate_KB=gate_KB, fired_N=fired_N)
    y_BD = np.empty((batch, d), np.float32)
    scratch = ffn_scratch(ids.size, batch)
    args = ffi.new("hc_ffn_args *")
    size = records.itemsize
    args.records = ffi.cast("void *", records.ctypes.data)
    args.record_bytes = records.shape[1] * size
    args.up_offset, args.down_offset = (d * size, 2 * d * size) if gated else (-1, d * size)
    args.bias_offset = needed * size if biased else 0
    args.d, args.dtype, args.batch = d, code(records.dtype), batch
    args.ids, args.n_ids = pointer(ids, "int32_t *"), ids.size
    args.members = pointer(members, "uint32_t *")
    args.gate_KB = pointer(gate_KB, "float *")
    args.x_BD, args.y_BD = pointer(x_BD, "float *"), pointer(y_BD, "float *")
    args.n, args.scratch = records.shape[0], pointer(scratch, "void *")
    args.fired_N = pointer(fired_N, "int64_t *")
    check(lib.hc_ffn(args, handle(pool)))
    return FfnResult(y_BD, args.gate_rows, args.up_down_rows, args.bytes)


def _check_records(records: Weights, needed: int) -> None:
    if records.ndim != 2 or not records.flags.c_contiguous or records.shape[1] < needed:
        raise ConfigError(f"records are {records.shape}; contiguous rows of >= {needed} are needed")


def _check_ffn(
    records: Weights,
    batch: int,
    ids: I32,
    *,
    members: U32 | None,
    gate_KB: F32 | None,
    fired_N: NDArray[np.int64] | None,
) -> None:
    """Refuse arrays of ffn whose sizes contradict each other; C checks the values."""
    n, count = records.shape[0], array("ids", ids, np.int32, 1).size
    if members is not None:
        same("members", array("members", members, np.uint32, 1).size, count)
    if gate_KB is not None:
        same("gate", array("gate", gate_KB, np.float32, 2).size, count * batch)
    if fired_N is not None:
        same("fired", writable("fired", array("fired", fired_N, np.int64, 1)).size, n)


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

    Args:
        signs_NW: bit d mod 64 of word d // 64: weight d is positive; other bits 0.
        scale_N: factor of each row.
        x_BD: at most 32 tokens.
        input_bits: bit planes an input is cut in, 1 to 8.
        bias_N: added.
        column_D: factor of an input's elements.
        pool: threads; None: the caller's alone. The result does not depend on it.
    """
    batch, d = array("x", x_BD, np.float32, 2).shape
    n, words = array("signs", signs_NW, np.uint64, 2).shape
    same("words of a row", words, (d + 63) // 64)
    for name, given, size in (("scale", scale_N, n), ("bias", bias_N, n), ("column", column_D, d)):
        if given is not None:
            same(name, array(name, given, np.float32, 1).size, size)
    scores_BN = np.empty((batch, n), np.float32)
    planes = np.empty(batch * max(1, input_bits) * words, np.uint64)
    args = ffi.new("hc_sign_args *")
    args.n, args.d, args.input_bits, args.batch = n, d, input_bits, batch
    args.signs_NW, args.scale_N = pointer(signs_NW, "uint64_t *"), pointer(scale_N, "float *")
    args.bias_N, args.column_D = pointer(bias_N, "float *"), pointer(column_D, "float *")
    args.x_BD, args.scores_BN = pointer(x_BD, "float *"), pointer(scores_BN, "float *")
    args.planes_BPW = pointer(planes, "uint64_t *")
    check(lib.hc_sign(args, handle(pool)))
    return scores_BN


@dataclass(frozen=True)
class ActiveList:
    """One device's active neurons of a pass.

    Attributes:
        ids: ascending neuron ids, K of them.
        members: bit b of entry k: token b has neuron ids[k].
        gate_KB: None, or the scores as gate pre-activations.
    """

    ids: I32
    members: U32
    gate_KB: F32 | None


def split(
    scores_BN: F32, threshold: float, device_N: NDArray[np.int8], *, with_gate: bool = False
) -> list[ActiveList]:
    """Cut predicted scores into one ascending active list per device (score >= threshold).

    Args:
        scores_BN: predicted scores, at most 32 tokens.
        threshold: least score of an active neuron.
        device_N: owner of each neuron, 0 or 1.
        with_gate: copy the scores as gate pre-activations.
    """
    array("scores", scores_BN, np.float32, 2)
    batch, n = scores_BN.shape
    same("device", array("device", device_N, np.int8, 1).size, n)
    needed = int(lib.hc_active_bytes(n, max(1, min(batch, MAX_BATCH)), with_gate))
    buffers = [np.zeros(needed, np.uint8) for _ in range(MAX_DEVICES)]
    lists = [ffi.cast("hc_active *", buffer.ctypes.data) for buffer in buffers]
    args = ffi.new("hc_split_args *")
    args.scores_BN, args.n, args.batch = pointer(scores_BN, "float *"), n, batch
    args.threshold, args.with_gate = threshold, with_gate
    args.device_N = pointer(device_N, "int8_t *")
    for index, one in enumerate(lists):
        one.capacity = n
        args.out[index] = one
    check(lib.hc_split(args))
    return [_active(one, batch, with_gate) for one in lists]


def _active(one: CPointer, batch: int, with_gate: bool) -> ActiveList:
    """Copy a C active list into arrays."""
    count = one.count

    def copied(address: CPointer, items: int, dtype: type[np.generic]) -> NDArray[Any]:
        return np.frombuffer(bytes(ffi.buffer(address, items * 4)), dtype)

    gate = copied(lib.hc_active_gate(one), count * batch, np.float32) if with_gate else None
    return ActiveList(
        copied(lib.hc_active_ids(one), count, np.int32),
        copied(lib.hc_active_members(one), count, np.uint32),
        None if gate is None else gate.reshape(count, batch),
    )
