"""Typed face of the resident loop (loop.c, steps.c, request.c): one object an actor.

Keeps every array alive that the C side points to. Knows nothing of bundles, plans or Ray: it takes
addresses and arrays from `hotcold.runtime.engine.executors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import STEP, TOKEN, Actor, Status
from hotcold.native.abi.names import DTYPES, FORMS, NORMS
from hotcold.native.bindings._ffi import check, failure, ffi, last_error, lib, pointer
from hotcold.native.bindings.device import DeviceArrays, NativeDevice
from hotcold.native.bindings.token_kernels import set_sampling
from hotcold.native.options.sampling import Sampling


@dataclass(frozen=True)
class LayerAddresses:
    """Where one layer's tensors lie in this process."""

    attention_norm: int
    ffn_norm: int
    qkv: int
    o: int
    records: int
    attention_norm_bias: int = 0  # as all from here on: 0 where the model has none
    ffn_norm_bias: int = 0
    qkv_bias: int = 0
    o_bias: int = 0
    ffn_bias: int = 0


@dataclass(frozen=True)
class ModelAddresses:
    """hc_model: shapes as in hotcold.h, addresses into a weight store that outlives the executor.

    An address of 0 means that the model has no such tensor, a table of None no rotary embedding.
    """

    heads: int
    kv_heads: int
    head_dim: int
    d: int
    n: int
    vocab: int
    context: int
    norm_eps: float
    dtype: str
    record_bytes: int
    gate_offset: int
    up_offset: int
    down_offset: int
    layers: Sequence[LayerAddresses]
    embed: int
    head: int
    final_norm: int
    cos_PE: NDArray[np.float32] | None
    sin_PE: NDArray[np.float32] | None
    embed_dim: int
    norm: str = "rms"
    post_norm: bool = False
    bias_offset: int = 0
    final_norm_bias: int = 0
    positions: int = 0
    project_in: int = 0
    project_out: int = 0


@dataclass(frozen=True)
class OwnedNeurons:
    """The neurons one device owns in one layer: ids int32 ascending."""

    ids: NDArray[np.int32]


@dataclass(frozen=True)
class PredictorArrays:
    """hc_predictor_layer: a form of predict.h by name, and what it reads; None: it has no such."""

    form: str
    threshold: float
    residual_input: bool = False
    relu: bool = False
    fc1: NDArray[Any] | None = None
    fc2: NDArray[Any] | None = None
    bias: NDArray[np.float32] | None = None
    signs: NDArray[np.uint64] | None = None
    scale: NDArray[np.float32] | None = None
    column: NDArray[np.float32] | None = None
    input_bits: int = 0
    window: int = 0
    probe_every: int = 0


@dataclass(frozen=True)
class Request:
    """One generation: prompt ids and how they are continued. logits and masks are written in place.

    max_tokens: still to make, at most; 0 where only the prompt is computed. eos: ids that end it.
    n_given: leading tokens of the prompt that were asked for, where the rest had been generated
    before a loss; 0: all. n_dense: leading tokens that a GPU computes in dense passes; None: the
    executor chooses.
    """

    id: int
    prompt: NDArray[np.int32]
    sampling: Sampling
    max_tokens: int = 0
    eos: tuple[int, ...] = ()
    logits_PV: NDArray[np.float32] | None = None
    masks_PLN: NDArray[np.uint8] | None = None
    n_past: int = 0
    n_given: int = 0
    n_dense: int | None = None


@dataclass(frozen=True)
class RequestTimes:
    """Nanoseconds of CLOCK_MONOTONIC: begun, prompt done, all done; passes run; bytes all read."""

    begin_ns: int
    prompt_ns: int
    end_ns: int
    passes: int
    prompt_bytes: int
    decode_bytes: int


@dataclass
class ExecutorArrays:
    """Everything hc_executor_args points to, by Python's names."""

    actor: str
    model: ModelAddresses
    segment: Any  # hc_segment * of hotcold.native.bindings.segment
    epoch: int
    steps: NDArray[Any]
    max_batch: int
    threads: int
    cores: Sequence[int] | None = None
    owned: Sequence[OwnedNeurons] = ()
    predictors: Sequence[PredictorArrays] = ()
    device_LN: NDArray[np.int8] | None = None
    kv: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    fired_LN: NDArray[np.int64] | None = None
    audit_every: int = 0
    audit_seed: int = 0
    device: DeviceArrays | None = None  # GPU actor: its GPU; None: the CPU device
    keep: list[Any] = field(default_factory=list)


def _cpu_model(model: ModelAddresses, keep: list[Any]) -> Any:
    """Build hc_model; keep receives what must stay alive."""
    layers = ffi.new("hc_layer[]", len(model.layers))
    for row, layer in zip(layers, model.layers, strict=True):
        for name in ("qkv", "o", "records"):
            setattr(row, name, ffi.cast("void *", getattr(layer, name)))
        row.qkv_bias = ffi.cast("float *", layer.qkv_bias)
        for name in "attention_norm ffn_norm attention_norm_bias ffn_norm_bias".split():
            setattr(row, f"{name}_D", ffi.cast("float *", getattr(layer, name)))
        row.o_bias_D = ffi.cast("float *", layer.o_bias)
        row.ffn_bias_D = ffi.cast("float *", layer.ffn_bias)
    c = ffi.new("hc_model *")
    names = "heads kv_heads head_dim d n vocab context norm_eps record_bytes embed_dim post_norm"
    for name in f"{names} gate_offset up_offset down_offset bias_offset".split():
        setattr(c, name, getattr(model, name))
    c.n_layers, c.dtype, c.layers = len(model.layers), DTYPES[model.dtype], layers
    c.norm = NORMS[model.norm]
    for name in "embed head positions project_in project_out".split():
        setattr(c, name, ffi.cast("void *", getattr(model, name)))
    c.final_norm_D = ffi.cast("float *", model.final_norm)
    c.final_norm_bias_D = ffi.cast("float *", model.final_norm_bias)
    c.cos_PE = pointer(model.cos_PE, "float *")
    c.sin_PE = pointer(model.sin_PE, "float *")
    keep += [layers, c, model]
    return c


def _owned(owned: Sequence[OwnedNeurons], keep: list[Any]) -> Any:
    if not owned:
        return ffi.NULL
    rows = ffi.new("hc_owned[]", len(owned))
    for row, one in zip(rows, owned, strict=True):
        row.ids, row.n_ids = pointer(one.ids, "int32_t *"), len(one.ids)
    keep += [rows, list(owned)]
    return rows


def _predictors(layers: Sequence[PredictorArrays], keep: list[Any]) -> Any:
    if not layers:
        return ffi.NULL
    rows = ffi.new("hc_predictor_layer[]", len(layers))
    for row, layer in zip(rows, layers, strict=True):
        row.form = FORMS[layer.form]
        row.input = 1 if layer.residual_input else 0
        for name in ("threshold", "relu", "input_bits", "window", "probe_every"):
            setattr(row, name, getattr(layer, name))
        row.bias_N = pointer(layer.bias, "float *")
        row.signs_NW = pointer(layer.signs, "uint64_t *")
        row.scale_N, row.column_D = (
            pointer(layer.scale, "float *"),
            pointer(layer.column, "float *"),
        )
        if layer.fc1 is not None:
            row.fc1, row.fc2 = pointer(layer.fc1, "void *"), pointer(layer.fc2, "void *")
            row.hidden, row.dtype = layer.fc1.shape[0], DTYPES[str(layer.fc1.dtype)]
    keep += [rows, list(layers)]
    return rows


class NativeExecutor:
    """One actor's resident loop: run() in a thread of its own, close() after run() returned."""

    def __init__(self, arrays: ExecutorArrays) -> None:
        self.device: NativeDevice | None = None
        keep = arrays.keep
        cores = list(arrays.cores) if arrays.cores else None
        c_cores = ffi.new("int32_t[]", cores) if cores else ffi.NULL
        spins = arrays.segment.spin_ns > 0
        self._pool = lib.hc_pool_create(arrays.threads, c_cores, spins)
        if self._pool == ffi.NULL:
            raise failure()
        steps = np.ascontiguousarray(arrays.steps, dtype=STEP)
        args = ffi.new("hc_executor_args *")
        args.actor, args.max_batch = Actor[arrays.actor.upper()], arrays.max_batch
        args.n_steps = len(steps)
        args.model, args.segment = _cpu_model(arrays.model, keep), arrays.segment
        args.epoch, args.steps = arrays.epoch, pointer(steps, "hc_step *")
        args.owned_L = _owned(arrays.owned, keep)
        args.predictors_L = _predictors(arrays.predictors, keep)
        args.device_LN = pointer(arrays.device_LN, "int8_t *")
        if arrays.kv is not None:
            args.k_cache = pointer(arrays.kv[0], "float *")
            args.v_cache = pointer(arrays.kv[1], "float *")
        args.fired_LN = pointer(arrays.fired_LN, "int64_t *")
        args.audit_every, args.audit_seed = arrays.audit_every, arrays.audit_seed
        args.pool, args.core = self._pool, cores[0] if cores else -1
        self._keep = [keep, steps, args, arrays]
        self._request: Request | None = None
        if arrays.device is not None:
            predictors = _predictors(arrays.device.predictors, keep)
            try:
                self.device = NativeDevice(arrays.device, args, predictors, keep)
            except BaseException:
                self.close()
                raise
            args.device = self.device.c
        self._c = lib.hc_executor_create(args)
        if self._c == ffi.NULL:
            error = failure()
            self.close()
            raise error

    def run(self) -> str | None:
        """Run pass after pass until the exchange is poisoned (GIL released).

        Returns:
            None after poison, else the text of the failure that ended (and poisoned) the exchange.
        """
        status = lib.hc_executor_run(self._c)
        return None if status == Status.ERR_POISONED else last_error()

    def step(self, index: int, seq: int) -> None:
        """Compute one step of the program, without waits or signals (Ray transport)."""
        check(lib.hc_executor_step(self._c, index, seq))

    def begin(
        self, seq: int, batch: int, tokens: NDArray[np.int32], position: int, rows: int
    ) -> None:
        """Set up a pass for step() (Ray transport); only the GPU executor reads the tokens."""
        check(
            lib.hc_executor_begin(self._c, seq, batch, pointer(tokens, "int32_t *"), position, rows)
        )

    def logits(self, rows: int, vocab: int) -> NDArray[np.float32]:
        """A copy of the last head step's logits, float32 [rows, V]."""
        data = ffi.buffer(lib.hc_executor_logits(self._c), rows * vocab * 4)
        logits: NDArray[np.float32] = np.array(np.frombuffer(data, np.float32)).reshape(rows, vocab)
        return logits

    def post(self, request: Request) -> None:
        """Hand a request to the loop thread.

        Raises:
            ConfigError: it does not fit the context or the vocabulary, or another one is running.
        """
        c = ffi.new("hc_request *")
        c.id, c.n_prompt, c.max_tokens = request.id, len(request.prompt), request.max_tokens
        c.prompt = pointer(request.prompt, "int32_t *")
        c.n_past, c.n_dense = request.n_past, request.n_dense or 0
        eos = np.array(request.eos, np.int32)  # C copies both lists
        c.n_eos, c.eos = len(eos), pointer(eos, "int32_t *")
        set_sampling(c, request.sampling)
        c.logits_PV = pointer(request.logits_PV, "float *")
        c.masks_PLN = pointer(request.masks_PLN, "uint8_t *")
        check(lib.hc_executor_post(self._c, c))
        self._request = request

    def tokens(
        self, index: int, timeout_ms: int, at_least: int = 1, limit: int = 64
    ) -> tuple[NDArray[Any], bool]:
        """Tokens from index on (TOKEN records, at most limit), and whether that is all of them.

        Waits until at_least are there, the request is done, or the time is over.
        """
        out = np.zeros(limit, dtype=TOKEN)
        done = ffi.new("int32_t *")
        n = lib.hc_executor_tokens(
            self._c, index, at_least, pointer(out, "hc_token *"), limit, timeout_ms, done
        )
        return out[:n], bool(done[0]) and n < limit

    def arm(self, op: int, at_seq: int, signal_number: int) -> None:
        """Fault injection: raise a signal in this process at the next step of an operation."""
        lib.hc_executor_arm(self._c, op, at_seq, signal_number)

    def cancel(self) -> None:
        """Ask the running request to end after its current token."""
        lib.hc_executor_cancel(self._c)

    def request_times(self) -> RequestTimes:
        """Times of the last finished request.

        Raises:
            ConfigError: what of the request ended it early.
        """
        state = ffi.new("hc_request_state *")
        lib.hc_executor_request_state(self._c, state)
        if state.error.status == Status.ERR_ARGUMENT:
            raise failure(state.error)
        return RequestTimes(
            *(state.begin_ns, state.prompt_ns, state.end_ns, state.passes),
            *(state.prompt_bytes, state.decode_bytes),
        )

    def close(self) -> None:
        """Free the native side; run() must have returned. Idempotent."""
        if getattr(self, "_c", ffi.NULL) != ffi.NULL:
            lib.hc_executor_destroy(self._c)
            self._c = ffi.NULL
        if self.device is not None:
            self.device.close()
        if self._pool != ffi.NULL:
            lib.hc_pool_destroy(self._pool)
            self._pool = ffi.NULL
