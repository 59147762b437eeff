"""The group: three actors and the exchange between them, from creation to the last freed byte.

Owned by the driver that launched an engine. It makes the segment of each epoch and the KV memory,
watches the actors' processes natively (a death poisons the exchange in about 9 ms), replaces the
ones that were lost, and takes everything down in the one order that leaves nothing: poison, wait
for the loops, kill, remove the placement group.
"""

import os
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.actors.cluster.processes import is_gone, is_stopped, ray_agents
from hotcold.actors.group import answers
from hotcold.actors.group.executor_actors import Facts, remote_class
from hotcold.actors.group.mps_session import MpsSession
from hotcold.native.bindings.device import Mailbox
from hotcold.native.bindings.segment import Watcher
from hotcold.native.errors import (
    ActorLostError,
    HotcoldError,
    KernelError,
    LaunchError,
)
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Shared
from hotcold.runtime.engine.executors.factory import executor_classes, leading_class
from hotcold.runtime.engine.kv import KvCache
from hotcold.runtime.exchange.segment import ACTORS, ActorState, Poison, PoisonCode, Segment
from hotcold.runtime.model.checkpoints.layout import layout

START_S = 120.0
SLOW_DISK = 50e6  # bytes a second: weights may have to be read before the actors are ready
END_S = cluster.END_S
NOT_INSTALLED = "No module named 'hotcold'"  # how Ray words that a worker cannot load an actor


class ActorGroup:
    """Three running actors.

    Args:
        deployment: what to run first; `load` replaces it.
        name: prefix of the actors' names.
        group: the caller's placement group, or None to make one.
        private_ray: this process started the Ray it is in, which must end with it.
        stuck_s: an actor that is stopped for longer counts as dead.

    Raises:
        ConfigError: the name is taken.
        LaunchError: the actors cannot be started.
    """

    def __init__(
        self,
        deployment: Deployment,
        name: str,
        group: PlacementGroup | None = None,
        private_ray: bool = False,
        stuck_s: float = 10.0,
    ) -> None:
        self.name, self.deployment = name, deployment
        self.actors: dict[str, Any] = {}
        self.facts: dict[str, Facts] = {}
        self._names: dict[str, str] = {}  # actor names by Ray's ids, lost ones included
        self.epoch_running = 0
        self._lock = threading.RLock()
        self._segment: Segment | None = None
        self._watcher: Watcher | None = None
        self._kv: KvCache | None = None
        self._loops: dict[str, Any] = {}
        self._epoch = 0
        self.closing = self._closed = False
        self._private_ray, self._stuck_s = private_ray, stuck_s
        self._mps = MpsSession()
        self._starting: set[str] = set()  # their facts are of the ones they replace
        cluster.check_name(name)
        self._own_group = group is None
        self._group: Any = group
        self._cpus = cluster.cpu_fractions(deployment.cores, 0.0)
        if group is None:
            self._group, self._cpus = cluster.reserve(deployment.cores, name)
        try:
            self._start(ACTORS)
            self.load(deployment)
        except RayError as error:
            lost = self.lost(error)
            self.close()
            if NOT_INSTALLED in str(error):
                raise LaunchError(
                    "the Ray cluster's Python has no hotcold; send it along with `hotcold submit "
                    "-- COMMAND`, or install it on every node"
                ) from error
            raise LaunchError(f"the actors could not be started: {lost}") from error
        except BaseException:
            self.close()
            raise

    def _start(self, names: Iterable[str]) -> None:
        """Create actors and wait until they answer."""
        self._starting |= set(names)
        for actor in names:
            self.actors[actor] = self._create(actor)
        refs = [self.actors[actor].facts.remote() for actor in names]
        self.facts.update(zip(names, self._answers(refs, START_S), strict=True))
        self._starting -= set(names)

    def _answers(self, refs: list[Any], timeout_s: float) -> list[Any]:
        """Results of actor calls; whoever is stopped meanwhile for too long is ended."""
        pids = [f.pid for actor, f in self.facts.items() if actor not in self._starting]
        return answers.gather(refs, pids, self._stuck_s, timeout_s, lambda: self.closing)

    def _create(self, actor: str) -> Any:
        made = remote_class(actor).options(
            name=f"{self.name}-{actor}",
            namespace=cluster.NAMESPACE,
            num_cpus=self._cpus[actor],
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=0
            ),
            **cluster.worker_options(),
        )
        deadline = time.monotonic() + END_S
        while True:
            try:
                handle = made.remote()
                self._names[handle._actor_id.hex()] = actor
                return handle
            except ValueError:  # the name of the one it replaces is not free yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def load(self, deployment: Deployment) -> None:
        """Begin a new epoch with this deployment; the actors stay up.

        What is being generated goes on with it, at the token it had come to.

        Raises:
            HotcoldError: an actor refused it; the one before runs again.
        """
        with self._lock:
            before = self.deployment if self.epoch_running else None
            self._end_epoch("gpu")
            self.deployment = deployment
            try:
                self._begin_epoch()
            except BaseException:
                if before is not None and not self._closed:
                    self._end_epoch("gpu")
                    self.deployment = before
                    self._begin_epoch()
                raise

    def load_asked(self) -> bool:
        """Load the plan another driver asked for, where the epoch was ended for that.

        Returns:
            whether it was.
        """
        with self._lock:
            segment = self._segment
            if self._closed or segment is None or segment.poisoned != (PoisonCode.CLOSED, "gpu"):
                return False
            try:
                gpu = self.actors["gpu"]
                asked = ray.get(gpu.asked.remote(), timeout=END_S)
                if asked is None:
                    return False
                error: HotcoldError | None = None
                try:
                    self.load(asked)
                except HotcoldError as refused:
                    error = refused
                gpu.answer.remote(error)
            except RayError:  # an actor was lost meanwhile, and the poison cannot say so
                self.rebuild()
            return True

    def _begin_epoch(self) -> None:
        self._epoch += 1
        deployment = self.deployment
        environments = self._mps.begin(deployment)
        pids = {facts.pid: actor for actor, facts in self.facts.items()} | self._mps.pids
        handle = kv = None
        if deployment.shares_memory:
            if self._kv is None and leading_class(deployment).keeps_kv:
                self._kv = KvCache.create(deployment.spec, deployment.context)
            segment = Segment.create(deployment.layout, self._epoch)
            self._watcher = segment.watch(pids)
            handle, self._segment = segment.handle, segment
            kv = None if self._kv is None else self._kv.handle
        data = ray.put(deployment)
        agents = ray_agents(os.getpid()) if self._private_ray else ()
        everyone = {**pids, os.getpid(): "driver"}
        limit_s = START_S + layout(deployment.spec)[1] / SLOW_DISK

        def load(actors: list[str], shared: Shared) -> list[Mailbox | None]:
            refs = []
            for actor in actors:
                peers = {p: who for p, who in everyone.items() if p != self.facts[actor].pid}
                own = shared, environments.get(actor)
                refs.append(self.actors[actor].load.remote(data, handle, peers, agents, *own))
            return self._answers(refs, limit_s)

        classes = executor_classes(deployment)
        later = [actor for actor in ACTORS if classes[actor].opens_mailbox]
        try:
            made = load([actor for actor in ACTORS if actor not in later], Shared(kv))
            if later:
                load(later, Shared(mailbox=next(filter(None, made), None)))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HotcoldError):
                raise error.cause from None
            raise
        if handle is not None:
            self._loops = {actor: self.actors[actor].loop.remote() for actor in ACTORS}
        self.epoch_running = self._epoch

    def _end_epoch(self, on_behalf_of: str = "driver") -> None:
        """Poison the running epoch and wait until every loop has returned.

        Closed in an actor's name it means that another plan follows (`PlanReplaced`).
        """
        if self._segment is None:
            return
        self._segment.poison(PoisonCode.CLOSED, on_behalf_of)
        if self._loops:
            ray.wait(list(self._loops.values()), num_returns=len(self._loops), timeout=END_S)
        if self._watcher is not None:
            self._watcher.close()
        self._segment.close()
        self._segment, self._watcher, self._loops = None, None, {}
        self._mps.unload(self.actors)

    def rebuild(self, must_go: str | None = None) -> tuple[float, float, float]:
        """Replace the actors that are gone, and begin a new epoch with the same deployment.

        May be called again where it failed.

        Args:
            must_go: an actor that is alive but cannot go on.

        Returns:
            seconds until all loops had ended, until the new actors answered, and until all ran.

        Raises:
            LaunchError: the actor group is closed.
            HotcoldError, RayError: it cannot be rebuilt.
        """
        with self._lock:
            self._check_open()
            begin = time.monotonic()
            lost = self._lost_now(must_go)
            self._kill(lost)
            self._end_epoch()
            ended = time.monotonic()
            try:
                self._start(lost)
                started = time.monotonic()
                self._begin_epoch()
                self._check_open()
            except BaseException:
                if self._closed:  # meanwhile, from this very thread: by a signal, by collection
                    self._kill(ACTORS)
                raise
            return ended - begin, started - ended, time.monotonic() - started

    def _check_open(self) -> None:
        if self.closing:
            raise LaunchError("the engine is closed")

    def _lost_now(self, must_go: str | None) -> list[str]:
        """The actors that cannot go on: gone, stopped, or not out of their loops in time."""
        gone = {must_go} | self._starting
        for actor, facts in self.facts.items():
            if is_gone(facts.pid) or is_stopped(facts.pid):
                gone.add(actor)
        loops = {actor: ref for actor, ref in self._loops.items() if actor not in gone}
        if loops:
            _, running = ray.wait(list(loops.values()), num_returns=len(loops), timeout=END_S)
            gone |= {actor for actor, ref in loops.items() if ref in running}
        gone = self._mps.lost(gone)
        return [actor for actor in ACTORS if actor in gone]

    def _kill(self, names: Iterable[str]) -> None:
        """End actors and wait until their processes are gone."""
        names = [actor for actor in names if actor in self.actors]
        pids = {actor: self.facts[actor].pid for actor in names if actor in self.facts}
        cluster.kill_actors([self.actors[actor] for actor in names], list(pids.values()))
        self._mps.end(names)

    def poison_within(self, timeout_s: float) -> Poison | None:
        """The exchange's poison, waited for at most so long; None where it is healthy."""
        segment = self._segment
        if segment is None:
            time.sleep(timeout_s)
            return self._gone()
        try:
            never = self.deployment.layout.spare_flag(0)
            segment.native.wait(never, 1, segment.epoch, int(timeout_s * 1e9))
            return segment.poisoned
        except KernelError:  # closed meanwhile, by a new plan
            return None

    def _gone(self) -> Poison | None:
        """Where no segment can be poisoned (Ray transport): an actor whose process has ended."""
        gone = [actor for actor, facts in list(self.facts.items()) if is_gone(facts.pid)]
        return Poison(PoisonCode.DIED, gone[0]) if gone and not self.closing else None

    def stopped(self, stops: answers.Stops) -> str | None:
        """An actor that has been stopped for too long, whether or not a pass runs."""
        pids = {facts.pid: actor for actor, facts in list(self.facts.items())}
        return next((pids[pid] for pid in stops.too_long(pids)), None)

    @property
    def is_whole(self) -> bool:
        """Whether all actors live and run the latest epoch, and nothing has poisoned it."""
        segment = self._segment
        try:
            if segment is None:
                healthy = not self.deployment.shares_memory
            else:
                healthy = segment.poisoned is None
        except KernelError:  # closed just now: another epoch begins
            return False
        pids = [facts.pid for facts in list(self.facts.values())]
        living = not any(is_gone(pid) or is_stopped(pid) for pid in pids)
        return healthy and living and self.epoch_running == self._epoch

    def pass_age_s(self) -> float:
        """Seconds since the running pass began; 0 between passes."""
        segment = self._segment
        try:
            if segment is None or self.running_progress() is None:
                return 0.0
            return max(0.0, (time.monotonic_ns() - segment.native.pass_begin_ns) / 1e9)
        except KernelError:
            return 0.0

    def running_progress(self) -> int | None:
        """Steps all actors have done, while a pass runs; None between passes."""
        segment = self._segment
        try:
            if segment is None:
                return None
            states = {actor: segment.actor_state(actor) for actor in ACTORS}
            runs = segment.pass_header.seq > states["gpu"].passes or segment.native.pass_prompt
            return sum(state.progress for state in states.values()) if runs else None
        except KernelError:
            return None

    def poison_stuck(self, actor: str | None = None) -> str:
        """Poison the exchange for an actor, or else for the one that holds up the running pass."""
        segment = self._segment
        if segment is None:
            return actor or "gpu"
        stopped = [a for a, facts in self.facts.items() if is_stopped(facts.pid)]
        actor = actor or (stopped or [self._holding_up(segment)])[0]
        segment.poison(PoisonCode.STUCK, actor)
        return actor

    def _holding_up(self, segment: Segment) -> str:
        """The actor whose next step has all it waits for, and yet does not go on."""
        layout, seq = self.deployment.layout, segment.pass_header.seq
        flags = segment.view(layout.flags_offset, layout.n_flags * 64).view(np.uint32)[::16]
        others = () if segment.native.pass_prompt else ("cpu",)  # a GPU's pass is one step
        for actor in others if self.deployment.gpu else ACTORS:
            if len(steps := self.deployment.programs[actor]):
                waits = steps[segment.actor_state(actor).progress % len(steps)]["wait"]
                if all(flag < 0 or flags[flag] == seq for flag in waits):
                    return actor
        return "gpu"

    def states(self) -> dict[str, ActorState] | None:
        """Counters of the actors, read here; None where they share no segment."""
        segment = self._segment
        if segment is None:
            return None
        return {actor: segment.actor_state(actor) for actor in ACTORS}

    def lost(self, error: BaseException) -> BaseException:
        """The typed error behind what Ray or the exchange reported; error itself if none is."""
        if isinstance(error, ray.exceptions.RayTaskError):
            return error.cause if isinstance(error.cause, HotcoldError) else error
        if not isinstance(error, ActorDiedError | ActorUnavailableError):
            return error
        actor = self._names.get(error.actor_id, "gpu")
        return ActorLostError(actor, f"the {actor} actor died; launch the engine again")

    def close(self) -> None:
        """Take everything down; idempotent, and safe after any failure of the constructor."""
        self.closing = True
        with self._lock:
            self._closed = True
            self._end_epoch()
            self._kill(ACTORS)
            self.actors.clear()
            if self._own_group and self._group is not None and not cluster.is_last():
                remove_placement_group(self._group)
            self._group = None
            if self._kv is not None:
                self._kv.close()
            self._kv = None  # its arrays would keep the memory for as long as the engine is held
