"""The operators and the CPU variants, as typed functions over numpy arrays.

Called by tests, benches and offline tools; the executors call the same C functions from C. Weight
arrays are float32, float16, or uint16 holding bfloat16. Nothing here keeps state but `Pool`, which
owns threads. Bad arguments raise ConfigError, a CPU variant this machine lacks BackendError.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native._ffi import check, ffi, last_error, lib, pointer
from hotcold.runtime.errors import BackendError, ConfigError, KernelError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
Weights = NDArray[Any]

_CODES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}


def cpu_variants() -> tuple[str, ...]:
    """Names of the CPU variants this machine supports, best first."""
    names: list[str] = []
    while (name := lib.hc_cpu_variant(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return tuple(names)


def active_cpu_variant() -> str:
    """Name of the CPU variant in force.

    Call it before work starts: HOTCOLD_CPU is read once, at the first use of a kernel.

    Raises:
        BackendError: HOTCOLD_CPU names a variant this machine does not support.
    """
    name = lib.hc_cpu_active()
    if name == ffi.NULL:
        raise BackendError(last_error())
    return str(ffi.string(name).decode())


def force_cpu_variant(name: str | None) -> None:
    """Use a variant in the whole process from now on; None: the best one.

    Raises:
        BackendError: this machine does not support it.
    """
    check(lib.hc_cpu_force(ffi.NULL if name is None else name.encode()))


class Pool:
    """Threads the operators share; a context manager.

    One operator at a time runs on a pool; a second one that comes meanwhile uses its caller's
    thread alone. Idle threads sleep after 200 us.

    Args:
        threads: how many, the caller's own included.
        cores: None, or one core a thread; the first one is the caller's, who pins itself.

    Raises:
        ConfigError: fewer than one thread, or a core this process may not use.
        KernelError: the threads could not be started.
    """

    def __init__(self, threads: int, cores: Sequence[int] | None = None) -> None:
        self._pool: Any = ffi.NULL
        if not 1 <= threads <= 1024:
            raise ConfigError(f"a pool of {threads} threads; 1 to 1024 are possible")
        if cores is not None:
            if len(cores) != threads:
                raise ConfigError(f"{len(cores)} cores for {threads} threads; give one each")
            allowed = os.sched_getaffinity(0)
            if missing := sorted(set(cores) - allowed):
                raise ConfigError(
                    f"cores {missing} are not among those this process may use: {sorted(allowed)}"
                )
        c_cores = ffi.NULL if cores is None else ffi.new("int32_t[]", list(cores))
        self._pool = lib.hc_pool_create(threads, c_cores)
        if self._pool == ffi.NULL:
            raise KernelError(last_error())

    @property
    def handle(self) -> Any:
        """The C pointer, NULL once closed."""
        return self._pool

    @property
    def threads(self) -> int:
        """Threads, the caller's own included; 1 once closed."""
        return int(lib.hc_pool_threads(self._pool))

    def close(self) -> None:
        """End the threads; operators still given this pool use the caller's thread alone."""
        pool, self._pool = self._pool, ffi.NULL
        lib.hc_pool_destroy(pool)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pool", ffi.NULL) != ffi.NULL:
            self.close()


def _handle(pool: Pool | None) -> Any:
    return ffi.NULL if pool is None else pool.handle


def _array(name: str, value: NDArray[Any], dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """Value, if it has that dtype and rank and is C-contiguous."""
    if value.dtype != dtype or value.ndim != ndim or not value.flags.c_contiguous:
        raise ConfigError(
            f"{name} is {value.dtype} of shape {value.shape}, a C-contiguous {np.dtype(dtype)} "
            f"array of {ndim} axes is needed"
        )
    return value


def _same(name: str, value: int, needed: int) -> None:
    if value != needed:
        raise ConfigError(f"{name} has {value} entries, {needed} are needed")


def _code(dtype: np.dtype[Any]) -> int:
    if dtype not in _CODES:
        raise ConfigError(f"weights are {dtype}; float32, float16 or uint16 (bfloat16) are needed")
    return _CODES[dtype]


def _writable(name: str, value: NDArray[Any]) -> NDArray[Any]:
    if not value.flags.writeable:
        raise ConfigError(f"{name} is read-only; pass a writable copy")
    return value


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
    _array("x", x_BD, np.float32, 2)
    rows, d = w_RD.shape
    batch = x_BD.shape[0]
    _same("a token of x", x_BD.shape[1], d)
    if bias_R is not None:
        _same("bias", _array("bias", bias_R, np.float32, 1).size, rows)
    y_BR = np.empty((batch, rows), np.float32) if add_to is None else add_to
    _writable("add_to", _array("add_to", y_BR, np.float32, 2))
    _same("add_to", y_BR.size, batch * rows)
    args = ffi.new("hc_gemv_args *")
    args.w = ffi.cast("void *", w_RD.ctypes.data)
    args.stride_bytes = w_RD.strides[0] if rows > 1 else d * w_RD.itemsize
    args.rows, args.d, args.dtype, args.batch = rows, d, _code(w_RD.dtype), batch
    args.x_BD, args.x_stride = pointer(x_BD, "float *"), d
    args.y_BR, args.y_stride = pointer(y_BR, "float *"), rows
    args.bias_R = pointer(bias_R, "float *")
    args.relu, args.accumulate = relu, add_to is not None
    check(lib.hc_gemv(args, _handle(pool)))
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
    _array("x", x_BD, np.float32, 2)
    batch, d = x_BD.shape
    n, width = records.shape
    if not records.flags.c_contiguous or width < 3 * d:
        raise ConfigError(
            f"records of shape {records.shape} are not C-contiguous rows of >= {3 * d}"
        )
    bounds = _even_bounds(n, 16) if bounds is None else _array("bounds", bounds, np.int32, 1)
    if bounds.size < 2 or bounds[-1] > n:
        raise ConfigError(f"bounds {bounds.tolist()} must cut 0 to {n} in at least one chunk")
    count = _array("ids", ids, np.int32, 1).size
    if members is not None:
        _same("members", _array("members", members, np.uint32, 1).size, count)
    if gate_KB is not None:
        _same("gate", _array("gate", gate_KB, np.float32, 2).size, count * batch)
    if fired_N is not None:
        _same("fired", _writable("fired", _array("fired", fired_N, np.int64, 1)).size, n)
    chunks = bounds.size - 1
    y_BD = np.empty((batch, d), np.float32)
    partial = np.empty(chunks * batch * d, np.float32)
    work = np.empty(chunks * 8, np.int64)
    args = ffi.new("hc_ffn_args *")
    size = records.itemsize
    args.records = ffi.cast("void *", records.ctypes.data)
    args.record_bytes = width * size
    args.gate_offset, args.up_offset, args.down_offset = 0, d * size, 2 * d * size
    args.d, args.dtype, args.batch = d, _code(records.dtype), batch
    args.ids, args.n_ids = pointer(ids, "int32_t *"), count
    args.members = pointer(members, "uint32_t *")
    args.gate_KB = pointer(gate_KB, "float *")
    args.bounds, args.n_chunks = pointer(bounds, "int32_t *"), chunks
    args.x_BD, args.y_BD = pointer(x_BD, "float *"), pointer(y_BD, "float *")
    args.partial_CBD, args.work_C = pointer(partial, "float *"), pointer(work, "int64_t *")
    args.fired_N = pointer(fired_N, "int64_t *")
    check(lib.hc_ffn(args, _handle(pool)))
    return FfnResult(y_BD, args.gate_rows, args.up_down_rows, args.bytes)


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
    _array("scores", scores_BN, np.float32, 2)
    batch, n = scores_BN.shape
    _same("device", _array("device", device_N, np.int8, 1).size, n)
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


def _active(one: Any, batch: int, with_gate: bool) -> ActiveList:
    """Copy a C active list into arrays."""
    count = one.count

    def copied(address: Any, items: int, dtype: type[np.generic]) -> NDArray[Any]:
        return np.frombuffer(bytes(ffi.buffer(address, items * 4)), dtype)

    gate = copied(lib.hc_active_gate(one), count * batch, np.float32) if with_gate else None
    return ActiveList(
        copied(lib.hc_active_ids(one), count, np.int32),
        copied(lib.hc_active_members(one), count, np.uint32),
        None if gate is None else gate.reshape(count, batch),
    )


def rmsnorm(x_BD: F32, weight_D: F32, eps: float) -> F32:
    """x / sqrt(mean(x^2) + eps) * weight, token by token (at most 32)."""
    batch, d = _array("x", x_BD, np.float32, 2).shape
    _same("weight", _array("weight", weight_D, np.float32, 1).size, d)
    y_BD = np.empty_like(x_BD)
    x, weight = pointer(x_BD, "float *"), pointer(weight_D, "float *")
    check(lib.hc_rmsnorm(x, weight, eps, pointer(y_BD, "float *"), batch, d))
    return y_BD


def rotary(x_BHE: F32, cos_PE: F32, sin_PE: F32, position_B: I32) -> None:
    """Turn heads in place by their token's position (rotate-half).

    Args:
        x_BHE: [B, heads, head_dim], changed in place.
        cos_PE: [positions, head_dim / 2]; sin_PE likewise.
        sin_PE: see cos_PE.
        position_B: position of each token.
    """
    _writable("x", _array("x", x_BHE, np.float32, 3))
    batch, heads, head_dim = x_BHE.shape
    for name, table in (("cos", cos_PE), ("sin", sin_PE)):
        _same(f"a row of {name}", _array(name, table, np.float32, 2).shape[1], head_dim // 2)
    _same("position", _array("position", position_B, np.int32, 1).size, batch)
    if batch and position_B.max() >= min(len(cos_PE), len(sin_PE)):
        raise ConfigError(f"position {position_B.max()} of tables for {len(cos_PE)} positions")
    check(
        lib.hc_rotary(
            pointer(x_BHE, "float *"),
            heads * head_dim,
            heads,
            head_dim,
            pointer(cos_PE, "float *"),
            pointer(sin_PE, "float *"),
            pointer(position_B, "int32_t *"),
            batch,
        )
    )


def attention(
    q_BHE: F32,
    k_cache: F32,
    v_cache: F32,
    position_B: I32,
    *,
    slot_B: I32 | None = None,
    pool: Pool | None = None,
) -> F32:
    """Grouped-query attention of each token to positions 0..its own; [B, heads, head_dim].

    Args:
        q_BHE: [B, heads, head_dim] queries, rotary applied.
        k_cache: [slots, kv_heads, context, head_dim]; v_cache likewise.
        v_cache: see k_cache.
        position_B: last position each token attends to.
        slot_B: which sequence each token belongs to; None: slot 0.
        pool: threads; None: the caller's alone.
    """
    batch, heads, head_dim = _array("q", q_BHE, np.float32, 3).shape
    slots, kv_heads, context, _ = _array("k_cache", k_cache, np.float32, 4).shape
    _same("v_cache", _array("v_cache", v_cache, np.float32, 4).size, k_cache.size)
    _same("a head of the caches", k_cache.shape[3], head_dim)
    _same("position", _array("position", position_B, np.int32, 1).size, batch)
    if slot_B is not None:
        _same("slot", _array("slot", slot_B, np.int32, 1).size, batch)
        if batch and slot_B.max() >= slots:
            raise ConfigError(f"slot {slot_B.max()} of a cache of {slots}")
    threads = 1 if pool is None else pool.threads
    scores = np.empty(threads * context, np.float32)
    out = np.empty_like(q_BHE)
    args = ffi.new("hc_attention_args *")
    args.q, args.q_stride = pointer(q_BHE, "float *"), heads * head_dim
    args.k_cache, args.v_cache = pointer(k_cache, "float *"), pointer(v_cache, "float *")
    args.heads, args.kv_heads, args.head_dim, args.batch = heads, kv_heads, head_dim, batch
    args.context = context
    args.slot_B = pointer(slot_B, "int32_t *")
    args.position_B = pointer(position_B, "int32_t *")
    args.scores, args.out = pointer(scores, "float *"), pointer(out, "float *")
    check(lib.hc_attention(args, _handle(pool)))
    return out


def sample(
    logits_V: F32,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    position: int = 0,
) -> tuple[int, float]:
    """Draw a token id; returns it with the log softmax of the raw logits at it.

    Args:
        logits_V: logits of the vocabulary.
        temperature: 0 is greedy (the lowest id among equals).
        top_k: keep the k largest; 0: all.
        top_p: keep the most probable that reach this probability; 1: all.
        seed: with position it fixes the random number, whatever was drawn before.
        position: see seed.
    """
    vocab = _array("logits", logits_V, np.float32, 1).size
    ids, probabilities = np.empty(vocab, np.int32), np.empty(vocab, np.float32)
    args = ffi.new("hc_sample_args *")
    args.logits_V, args.vocab = pointer(logits_V, "float *"), vocab
    args.temperature, args.top_p = temperature, top_p
    args.top_k = min(top_k, np.iinfo(np.int32).max)
    args.seed, args.position = seed % 2**64, position % 2**64
    args.scratch_V = pointer(ids, "int32_t *")
    args.prob_V = pointer(probabilities, "float *")
    check(lib.hc_sample(args))
    return args.id, args.logprob
