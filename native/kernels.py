"""The operators and the CPU variants, as typed functions over numpy arrays.

Called by tests, benches and offline tools; the executors call the same C functions from C. Weight
arrays are float32, float16, or uint16 holding bfloat16. Nothing here keeps state but `Pool`, which
owns threads. Bad arguments raise ConfigError, a CPU variant this machine lacks BackendError.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native._arrays import F32, I32, U32, Weights, array, code, handle, same, writable
from hotcold.native._ffi import check, pointer
from hotcold.native._kernels import ffi, lib
from hotcold.native.pool import (
    CPointer,
    Pool,
    active_cpu_variant,
    cpu_variants,
    force_cpu_variant,
)
from hotcold.native.token_kernels import attention, rmsnorm, rotary, sample
from hotcold.runtime.errors import ConfigError

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
    "rmsnorm",
    "rotary",
    "sample",
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
        bias_R: added to every token's result.
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
        same("bias", array("bias", bias_R, np.float32, 1).size, rows)
    y_BR = np.empty((batch, rows), np.float32) if add_to is None else add_to
    writable("add_to", array("add_to", y_BR, np.float32, 2))
    same("add_to", y_BR.size, batch * rows)
    args = ffi.new("hc_gemv_args *")
    args.w = ffi.cast("void *", w_RD.ctypes.data)
    args.stride_bytes = w_RD.strides[0] if rows > 1 else d * w_RD.itemsize
    args.rows, args.d, args.dtype, args.batch = rows, d, code(w_RD.dtype), batch
    args.x_BD, args.x_stride = pointer(x_BD, "float *"), d
    args.y_BR, args.y_stride = pointer(y_BR, "float *"), rows
    args.bias_R = pointer(bias_R, "float *")
    args.relu, args.accumulate = relu, add_to is not None
    check(lib.hc_gemv(args, handle(pool)))
    return y_BR


@dataclass(frozen=True)
class FfnResult:
    """Output of a sparse FFN and what it took.

    Attributes:
        y_BD: float32 output of the listed neurons.
        gate_rows: gate rows times tokens evaluated.
        up_down_rows: neurons times tokens whose gate fired.
        bytes: weight bytes touched; a row counts once a batch.
    """

    y_BD: F32
    gate_rows: int
    up_down_rows: int
    bytes: int


def _even_bounds(n: int, n_chunks: int) -> I32:
    return np.array([n * c // n_chunks for c in range(n_chunks + 1)], np.int32)


def ffn(
    records: Weights,
    ids: I32,
    x_BD: F32,
    *,
    bounds: I32 | None = None,
    members: U32 | None = None,
    gate_KB: F32 | None = None,
    fired_N: NDArray[np.int64] | None = None,
    pool: Pool | None = None,
) -> FfnResult:
    """Sparse ReGLU feed-forward over ascending neuron ids, gate first.

    Args:
        records: [N, E] neuron records in the weights' dtype: gate row, up row, down column of D
            elements each, then padding (E >= 3 D).
        ids: ascending neuron ids, K of them.
        x_BD: at most 32 tokens.
        bounds: ascending neuron ids that cut the neurons in chunks; None: 16 even ones.
        members: bit b of entry k: token b asks for neuron ids[k]; None: all do.
        gate_KB: gate pre-activations, if known; entry [k, b].
        fired_N: counts, raised by the tokens for which each neuron's gate fired.
        pool: threads; None: the caller's alone. The result does not depend on it.
    """
    batch, d = array("x", x_BD, np.float32, 2).shape
    bounds = _even_bounds(records.shape[0], 16) if bounds is None else bounds
    _check_ffn(records, (batch, d), ids, bounds, members=members, gate_KB=gate_KB, fired_N=fired_N)
    chunks = bounds.size - 1
    y_BD = np.empty((batch, d), np.float32)
    partial = np.empty(chunks * batch * d, np.float32)
    work = np.empty(chunks * 8, np.int64)
    args = ffi.new("hc_ffn_args *")
    size = records.itemsize
    args.records = ffi.cast("void *", records.ctypes.data)
    args.record_bytes = records.shape[1] * size
    args.gate_offset, args.up_offset, args.down_offset = 0, d * size, 2 * d * size
    args.d, args.dtype, args.batch = d, code(records.dtype), batch
    args.ids, args.n_ids = pointer(ids, "int32_t *"), ids.size
    args.members = pointer(members, "uint32_t *")
    args.gate_KB = pointer(gate_KB, "float *")
    args.bounds, args.n_chunks = pointer(bounds, "int32_t *"), chunks
    args.x_BD, args.y_BD = pointer(x_BD, "float *"), pointer(y_BD, "float *")
    args.partial_CBD, args.work_C = pointer(partial, "float *"), pointer(work, "int64_t *")
    args.fired_N = pointer(fired_N, "int64_t *")
    check(lib.hc_ffn(args, handle(pool)))
    return FfnResult(y_BD, args.gate_rows, args.up_down_rows, args.bytes)


def _check_ffn(
    records: Weights,
    shape_BD: tuple[int, int],
    ids: I32,
    bounds: I32,
    *,
    members: U32 | None,
    gate_KB: F32 | None,
    fired_N: NDArray[np.int64] | None,
) -> None:
    """Refuse arrays of ffn whose sizes contradict each other; C checks the values."""
    batch, d = shape_BD
    if records.ndim != 2 or not records.flags.c_contiguous or records.shape[1] < 3 * d:
        raise ConfigError(f"records are {records.shape}; contiguous rows of >= {3 * d} are needed")
    n, count = records.shape[0], array("ids", ids, np.int32, 1).size
    if array("bounds", bounds, np.int32, 1).size < 2 or bounds[-1] > n:
        raise ConfigError(f"bounds {bounds.tolist()} must cut 0 to {n} in at least one chunk")
    if members is not None:
        same("members", array("members", members, np.uint32, 1).size, count)
    if gate_KB is not None:
        same("gate", array("gate", gate_KB, np.float32, 2).size, count * batch)
    if fired_N is not None:
        same("fired", writable("fired", array("fired", fired_N, np.int64, 1)).size, n)


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
    needed = int(lib.hc_active_bytes(n, max(1, min(batch, 32)), with_gate))
    buffers = [np.zeros(needed, np.uint8) for _ in range(lib.HC_MAX_DEVICES)]
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
