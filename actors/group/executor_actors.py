"""The actors, each with one executor of `hotcold.runtime.engine.executors`.

An actor opens, runs and closes its executor in its own process. `loop` is one resident call in a
concurrency group of its own (the native loop, GIL released); control calls are answered meanwhile
in 0.6 ms; requests stream in a third group. Restarts are off: Ray then reports a death in 10 ms
instead of 1.2 s, and the engine has to rebuild the actor group anyway.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from hotcold.actors.cluster.processes import end_processes
from hotcold.actors.group.remote_taker import RemoteTaker
from hotcold.actors.group.serving import Serving
from hotcold.actors.telemetry.beside import Telemetry
from hotcold.native.abi.generated import MAX_BATCH, Op, Role
from hotcold.native.bindings.device import Mailbox
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.bindings.segment import Watcher
from hotcold.native.errors import ConfigError, HotcoldError, LaunchError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Executor, Shared
from hotcold.runtime.engine.executors.factory import make_executor
from hotcold.runtime.engine.executors.leading import LeadingExecutor, run_through
from hotcold.runtime.engine.moving import Moved, Places, Taker, own_memory
from hotcold.runtime.engine.request import Sampled
from hotcold.runtime.exchange.segment import ActorState, PoisonCode, Segment, SegmentHandle
from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.topology import Member
from hotcold.runtime.tracing.phases import phase_times
from hotcold.runtime.tracing.spans import read_array
from hotcold.runtime.weights.weights import WeightStore

ASKED_S = 150.0
GROUPS = {"loop": 1, "control": 4, "request": MAX_BATCH}


@dataclass(frozen=True)
class Facts:
    """Where an actor runs."""

    pid: int
    node_id: str
    nice: int


@dataclass(frozen=True)
class Payload:
    """Bytes of the exchange at an offset, carried by Ray instead of shared memory."""

    offset: int
    data: bytes


class ExecutorActor:
    """What all actors have in common; not an actor itself.

    Stability: beta, all methods. Call them through `Engine`, which knows the order.
    """

    def __init__(self, actor: str) -> None:
        self.actor = actor  # its label
        self._executor: Executor | None = None
        self._segment: Segment | None = None
        self._watcher: Watcher | None = None
        self._serving = Serving()
        self._telemetry = Telemetry(self.actor)
        self._loading = threading.Lock()  # a new plan; control calls wait until it is there
        self._agents: tuple[int, ...] = ()

    @ray.method(concurrency_group="control")
    def facts(self) -> Facts:
        """Process, node and niceness."""
        return Facts(os.getpid(), ray.get_runtime_context().get_node_id(), os.nice(0))

    @ray.method(concurrency_group="control")
    def load(
        self,
        deployment: Deployment,
        handle: SegmentHandle | None,
        pids: dict[int, str],
        agents: tuple[int, ...] = (),
        shared: Shared | None = None,
        environment: Mapping[str, str] | None = None,
        losses: int = 0,
    ) -> Mailbox | None:
        """Attach to an epoch's segment and build the executor for a deployment.

        Replaces what was loaded before, whose loop must have ended. Without a handle memory is
        private (Ray transport). The death of one of `pids` poisons the exchange; `agents` are
        processes of the driver's own Ray that must not outlive it; `losses` of actors there have
        been. Returns the mailbox of a GPU executor that asks a remote predictor.
        """
        self._agents = agents
        os.environ.update(environment or {})  # before it first touches CUDA
        keep: AbstractContextManager[Any] = nullcontext()
        if deployment.store == "memfd":
            # Held over the change, or the machine's only copy could go with its last user.
            keep = WeightStore.open(open_bundle(deployment.bundle_path), deployment.store)
        with keep, self._serving.none(), self._loading:  # nobody uses what is there
            self._release()
            if handle is None:
                self._segment = Segment.private(deployment.layout, 1, deployment.spins)
            else:
                self._segment = Segment.attach(handle)
                self._watcher = self._segment.watch(pids)
            self._executor = make_executor(self.actor, deployment, self._segment, shared)
            self._telemetry.load(self._segment, deployment, losses)
            return self._executor.mailbox

    @ray.method(concurrency_group="control")
    def unload(self) -> None:
        """Free what was loaded, whose loop must have ended."""
        with self._serving.none(), self._loading:
            self._release()

    @ray.method(concurrency_group="control")
    def ready(self) -> None:
        """Answer once something is loaded."""
        deadline = time.monotonic() + 60
        while self._executor is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._loaded

    @ray.method(concurrency_group="loop")
    def loop(self) -> None:
        """Run passes until the exchange is poisoned; the call's end is the sign of life's end."""
        executor = self._loaded
        executor.run()
        poison = executor.segment.poisoned
        if poison is not None and poison.code is PoisonCode.DIED and poison.actor == "driver":
            end_processes(self._agents)
            os._exit(1)  # nobody is left to serve; Ray would notice in a second or two

    @ray.method(concurrency_group="control")
    def arm(self, op: str, at_seq: int, signal_number: int) -> None:
        """Fault injection: raise a signal in this process when a step of op next begins."""
        self._loaded.native.arm(Op[op.upper()], at_seq, signal_number)

    @ray.method(concurrency_group="control")
    def take(self, places: Places) -> int:
        """Have the records of neurons that come; how many of the first there are slots for."""
        return self._loaded.take(places)

    @ray.method(concurrency_group="control")
    def drop(self, places: Places) -> None:
        """Free the slots of neurons that have gone, or have not come after all."""
        self._loaded.drop(places)

    @ray.method(concurrency_group="control")
    def state(self) -> ActorState:
        """This actor's counters."""
        with self._loading:
            return self._loaded.segment.actor_state(self.actor)

    @ray.method(concurrency_group="control")
    def spans(self, actors: tuple[str, ...]) -> dict[str, NDArray[np.void]]:
        """Spans of the last steps by actor, as this actor's segment has them."""
        return {actor: read_array(self._loaded.segment, actor)[0] for actor in actors}

    @ray.method(concurrency_group="control")
    def telemetry(self) -> tuple[str, tuple[str, ...]]:
        """Where this actor publishes, and of which actors; ConfigError: it cannot."""
        return self._telemetry.address(), self._telemetry.actors

    @ray.method(concurrency_group="control")
    def begin(
        self, seq: int, batch: int, tokens: NDArray[np.int32], position: int, rows: int
    ) -> None:
        """Ray transport: set up a pass."""
        self._loaded.native.begin(seq, batch, tokens, position, rows)

    @ray.method(concurrency_group="control")
    def step(
        self, index: int, seq: int, writes: list[tuple[int, int]], *inputs: list[Payload]
    ) -> list[Payload]:
        """Ray transport: take payloads in, compute one step, hand its payloads out."""
        segment = self._loaded.segment
        for payload in (one for group in inputs for one in group):
            view = segment.view(payload.offset, len(payload.data))
            view[:] = np.frombuffer(payload.data, np.uint8)
        self._loaded.native.step(index, seq)
        return [Payload(at, segment.view(at, size).tobytes()) for at, size in writes]

    @property
    def _loaded(self) -> Executor:
        if self._executor is None:
            raise LaunchError(f"the {self.actor} actor has nothing loaded; launch the engine again")
        return self._executor

    def _release(self) -> None:
        self._telemetry.unload()
        if self._watcher is not None:
            self._watcher.close()
        if self._executor is not None:
            self._executor.close()
        if self._segment is not None:
            self._segment.close()
        self._watcher = self._executor = self._segment = None


class GpuExecutor(ExecutorActor):
    """Attention, head, hot neurons, merge, sampling of the first; of others hot neurons alone."""

    def __init__(self, actor: str) -> None:
        super().__init__(actor)
        self._asking = threading.Lock()
        self._asked: Deployment | None = None
        self._answer: queue.Queue[HotcoldError | None] = queue.Queue()
        self._counted: dict[str, ActorState] = {}  # under plans before this one, in this epoch

    def _release(self) -> None:
        self._counted = {}
        super()._release()

    @property
    def _leader(self) -> LeadingExecutor:
        executor = self._loaded
        assert isinstance(executor, LeadingExecutor)
        return executor

    @ray.method(concurrency_group="control")
    def ask(self, deployment: Deployment) -> None:
        """Have the owner load a deployment that another driver made; returns once it runs.

        Ends the epoch, by which the owner learns of it.

        Raises:
            HotcoldError: why it could not be loaded; the one before runs again.
        """
        if not self._asking.acquire(blocking=False):
            raise ConfigError("another driver is replanning this engine; try again when it is done")
        try:
            self._answer = queue.Queue()
            self._asked = deployment
            with self._loading:
                self._loaded.segment.poison(PoisonCode.CLOSED, self.actor)
            error = self._answer.get(timeout=ASKED_S)
        except queue.Empty:
            raise LaunchError("the driver that owns the engine did not load the plan") from None
        finally:
            self._asked = None
            self._asking.release()
        if error is not None:
            raise error

    @ray.method(concurrency_group="control")
    def asked(self) -> Deployment | None:
        """For the owner: what another driver wants loaded."""
        return self._asked

    @ray.method(concurrency_group="control")
    def answer(self, error: HotcoldError | None) -> None:
        """From the owner: it runs, or why it does not."""
        self._answer.put(error)

    @ray.method(concurrency_group="control")
    def describe(self) -> Deployment:
        """What runs here, for drivers that connect to it."""
        with self._loading:
            return self._loaded.deployment

    @ray.method(concurrency_group="control")
    def states(self) -> dict[str, ActorState]:
        """Counters of all actors, read from the shared segment."""
        with self._loading:
            states, before = self._states(), self._counted
            return {a: state.since(before[a]) if before else state for a, state in states.items()}

    def _states(self) -> dict[str, ActorState]:
        segment = self._loaded.segment
        return {actor: segment.actor_state(actor) for actor in segment.actors}

    @ray.method(concurrency_group="control")
    def move(self, to: Deployment, peers: Mapping[str, Any], rate: int, anew: bool) -> Moved | None:
        """Become another deployment by moves alone, while tokens run; None: that cannot be.

        peers: handles of the other actors, by name. rate: bytes of records a second. anew: count
        from here on, as under a new plan.
        """
        with self._serving.one():  # an epoch ends once this has heard of it
            leader, takers = self._leader, dict[int, Taker]()
            executors = leader.deployment.topology.executors
            for device in own_memory(leader.deployment):
                actor = executors[device].actor
                there = actor == self.actor
                takers[device] = (
                    leader if there else RemoteTaker(actor, peers[actor], leader.segment)
                )
            moved = leader.move(to, takers, rate)
            if moved is not None and anew:
                self._counted = self._states()
            return moved

    @ray.method(concurrency_group="control")
    def ownership(self) -> tuple[int, int]:
        """Version of the table of owners, and neurons moved, since the launch."""
        with self._loading:
            return self._leader.ownership

    @ray.method(concurrency_group="control")
    def phases(self) -> dict[str, float]:
        """Seconds a pass by phase, over the newest passes; native transport only."""
        return phase_times(self._loaded.segment)

    @ray.method(concurrency_group="request")
    def generate(self, request: Request) -> Iterator[Sampled | RequestTimes | HotcoldError]:
        """Stream a request's tokens, coalesced; its times come last.

        A typed error is yielded, not raised, so that it reaches the driver as it is.
        """
        try:
            with self._telemetry.requests.one(), self._serving.one():
                stream = self._leader.generate(request)
                yield (yield from self._telemetry.requests.counted(request, stream))
        except HotcoldError as error:
            yield error

    @ray.method(concurrency_group="request")
    def score(self, request: Request, vocab: int) -> NDArray[np.float32]:
        """Logits of every prompt position."""
        logits = np.zeros((len(request.prompt), vocab), np.float32)
        with self._serving.one():
            run_through(self._leader.generate(replace(request, logits_PV=logits)))
        return logits

    @ray.method(concurrency_group="control")
    def cancel(self, request: int) -> None:
        """End the request of that id after its current token, if it still runs."""
        with self._loading:
            self._leader.cancel(request)

    @ray.method(concurrency_group="control")
    def logits(self, rows: int, vocab: int) -> NDArray[np.float32]:
        """Ray transport: logits of the last head step."""
        return self._loaded.native.logits(rows, vocab)


class CpuExecutor(ExecutorActor):
    """Cold neurons, from host memory."""


class Predictor(ExecutorActor):
    """The active set of every layer: predictor matrices, or the gate rows themselves."""


def remote_class(member: Member) -> Any:
    """The Ray class of an actor, which shows what it is in lists of processes."""
    options: dict[str, Any] = {"max_restarts": 0, "concurrency_groups": GROUPS}
    executor = GpuExecutor if member.on_gpu else CpuExecutor
    return ray.remote(**options)(Predictor if member.role is Role.PREDICTOR else executor)
