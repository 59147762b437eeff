"""Typed face of the resident loop (loop.c, steps.c, scheduler.c, request.c): one object an actor.

Keeps every array alive that the C side points to. Knows nothing of bundles, plans or Ray: it takes
addresses and arrays from `hotcold.runtime.engine.executors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import STEP, TOKEN, TOP, Reuse, Status
from hotcold.native.bindings._ffi import check, copied, failure, ffi, lib, new, pointer
from hotcold.native.bindings.device import NativeDevice
from hotcold.native.bindings.token_kernels import drawing, pairs
from hotcold.native.errors import KernelError
from hotcold.native.options.sampling import Sampling, Top

EVERY = -1


@dataclass(frozen=True)
class Request:
    """One generation: prompt ids and how they are continued. logits and masks are written in place.

    id: tells it from others, until it is released. max_tokens: still to make, at most; 0 where only
    the prompt is computed. eos: ids that end it.
    n_given: leading tokens of the prompt that were asked for, where the rest had been generated
    before a loss; 0: all. reuse: which keys and values it may begin with. n_dense: leading tokens
    that a GPU computes in dense passes; None: the executor chooses.
    """

    id: int
    prompt: NDArray[np.int32]
    sampling: Sampling
    max_tokens: int = 0
    eos: tuple[int, ...] = ()
    logits_PV: NDArray[np.float32] | None = None
    masks_PLN: NDArray[np.uint8] | None = None
    n_given: int = 0
    reuse: Reuse = Reuse.NONE
    n_dense: int | None = None


@dataclass(frozen=True)
class RequestTimes:
    """Nanoseconds of CLOCK_MONOTONIC: begun, prompt done, all done; passes run; bytes all read.

    reused: tokens of the prompt that were not computed again.
    """

    begin_ns: int
    prompt_ns: int
    end_ns: int
    passes: int
    prompt_bytes: int
    decode_bytes: int
    reused: int = 0


class NativeExecutor:
    """One actor's resident loop: run() in a thread of its own, close() after run() returned.

    device: what NativeDevice takes; None: the CPU device. fields: of hc_executor_args
    (abi/hotcold.h), by name; addresses among them outlive it.

    Raises:
        HotcoldError: the pool, the device or the scratch cannot be had.
    """

    def __init__(
        self,
        threads: int,
        cores: Sequence[int] | None,
        *,
        device: Mapping[str, Any] | None = None,
        steps: NDArray[Any],
        **fields: Any,
    ) -> None:
        self.device: NativeDevice | None = None
        self._requests: dict[int, Request] = {}  # whose arrays the loop may write to
        c_cores = ffi.new("int32_t[]", list(cores)) if cores else ffi.NULL
        self._pool = lib.hc_pool_create(threads, c_cores, fields["segment"].spin_ns > 0)
        if self._pool == ffi.NULL:
            raise failure()
        steps = np.ascontiguousarray(steps, dtype=STEP)
        fields |= {"steps": steps, "n_steps": len(steps)}
        fields |= {"pool": self._pool, "core": cores[0] if cores else -1}
        try:
            args = self._args = new("hc_executor_args", **fields)
            if device is not None:
                self.device = NativeDevice(args, **device)
                args.device = self.device.c
            self._c = lib.hc_executor_create(args)
            if self._c == ffi.NULL:
                raise failure()
        except BaseException:
            self.close()
            raise

    def run(self) -> str | None:
        """Run pass after pass until the exchange is poisoned (GIL released).

        Returns:
            None after poison, else the text of the failure that ended (and poisoned) the exchange.
        """
        status = lib.hc_executor_run(self._live)
        if status == Status.ERR_POISONED:
            return None
        return str(ffi.string(lib.hc_last_error().text).decode())

    def step(self, index: int, seq: int) -> None:
        """Compute one step of the program, without waits or signals (Ray transport)."""
        check(lib.hc_executor_step(self._live, index, seq))

    def begin(
        self, seq: int, batch: int, tokens: NDArray[np.int32], position: int, rows: int
    ) -> None:
        """Set up a pass for step() (Ray transport); only the GPU executor reads the tokens."""
        c_tokens = pointer(tokens, "int32_t *")
        check(lib.hc_executor_begin(self._live, seq, batch, c_tokens, position, rows))

    def logits(self, rows: int, vocab: int) -> NDArray[np.float32]:
        """A copy of the last head step's logits, float32 [rows, V]."""
        data = ffi.buffer(lib.hc_executor_logits(self._live), rows * vocab * 4)
        logits: NDArray[np.float32] = np.array(np.frombuffer(data, np.float32)).reshape(rows, vocab)
        return logits

    def post(self, request: Request) -> None:
        """Hand a request to the loop thread; it begins once a slot is free.

        Raises:
            ConfigError: it does not fit the context or the vocabulary, or its id is taken.
        """
        eos = np.array(request.eos, np.int32)
        c = new(
            "hc_request",
            id=request.id,
            prompt=request.prompt,
            n_prompt=len(request.prompt),
            max_tokens=request.max_tokens,
            n_eos=len(eos),
            reuse=request.reuse,
            n_dense=request.n_dense or 0,
            eos=eos,
            **drawing(request.sampling),
            logits_PV=request.logits_PV,
            masks_PLN=request.masks_PLN,
        )
        check(lib.hc_executor_post(self._live, c))  # which copies both lists
        self._requests[request.id] = request

    def tokens(
        self, request: int, index: int, timeout_ms: int, at_least: int = 1, limit: int = 64
    ) -> tuple[NDArray[Any], bool]:
        """A request's tokens from index on (TOKEN records, at most limit); whether these are all.

        Waits until at_least are there, the request is done, or the time is over.
        """
        return self.tokens_and_top(request, index, timeout_ms, at_least, limit)[:2]

    def tokens_and_top(
        self, request: int, index: int, timeout_ms: int, at_least: int = 1, limit: int = 64
    ) -> tuple[NDArray[Any], bool, list[Top]]:
        """The same, and the alternatives of each token; none where the request wants none."""
        out = np.zeros(limit, dtype=TOKEN)
        asked = self._requests.get(request)
        n_top = asked.sampling.logprobs if asked is not None else 0
        top = np.zeros((limit, n_top), dtype=TOP)
        done, to = ffi.new("int32_t *"), pointer(out, "hc_token *")
        n = lib.hc_executor_tokens(
            *(self._live, request, index, at_least, to),
            *(pointer(top, "hc_top *") if n_top else ffi.NULL, limit, timeout_ms, done),
        )
        others = [pairs(row) for row in top[:n]] if n_top else []
        return out[:n], bool(done[0]) and n < limit, others

    def arm(self, op: int, at_seq: int, signal_number: int) -> None:
        """Fault injection: raise a signal in this process at the next step of an operation."""
        lib.hc_executor_arm(self._live, op, at_seq, signal_number)

    def cancel(self, request: int = EVERY) -> None:
        """Ask a request to end after its current token; by default every one that is there."""
        if self.is_open:
            lib.hc_executor_cancel(self._c, request)

    def request_times(self, request: int) -> RequestTimes:
        """Times of a finished request that was not released.

        Raises:
            ConfigError: what of the request ended it early.
        """
        state = ffi.new("hc_request_state *")
        lib.hc_executor_request_state(self._live, request, state)
        if state.error.status == Status.ERR_ARGUMENT:
            raise failure(state.error)
        return copied(state, RequestTimes)

    def release(self, request: int) -> None:
        """Cancel a request that still runs, and forget it."""
        if self.is_open and lib.hc_executor_release(self._c, request):
            self._requests.pop(request, None)

    def own(self, version: int) -> None:
        """Have the next pass begin with a version of the ownership (abi/moves.h)."""
        if self.is_open:
            lib.hc_executor_own(self._c, version)

    def owned(self, layer: int) -> NDArray[np.int32]:
        """A copy of the ids this executor owns in a layer; for tests, between passes."""
        count = ffi.new("int64_t *")
        data = lib.hc_executor_owned(self._live, layer, count)
        return np.array(np.frombuffer(ffi.buffer(data, int(count[0]) * 4), np.int32))

    @property
    def _live(self) -> Any:
        """The C executor; KernelError where it is closed."""
        if not self.is_open:
            raise KernelError("the executor is closed; launch another")
        return self._c

    @property
    def is_open(self) -> bool:
        """Whether the native side is there."""
        return bool(self._c != ffi.NULL)

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
