"""The group: the actors and the exchange between them, from creation to the last freed byte.

Owned by the driver that launched an engine. It makes the exchange of each epoch and the KV memory,
replaces the actors that were lost, and takes everything down in the one order that leaves nothing:
poison, wait for the loops, kill, remove the placement group. The processes are
actor_processes.py's, what they share epoch.py's; who notices a loss is the supervisor.
"""

import os
import threading
import time
from dataclasses import replace

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from hotcold.actors.cluster.processes import ray_agents
from hotcold.actors.group.actor_processes import END_S, START_S, ActorProcesses
from hotcold.actors.group.answers import Stops
from hotcold.actors.group.epoch import Epoch, SharedEpoch
from hotcold.actors.group.mps_session import MpsSession
from hotcold.native.bindings.device import Mailbox
from hotcold.native.errors import HotcoldError, LaunchError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.base import Shared
from hotcold.runtime.engine.executors.factory import executor_classes, leading_class
from hotcold.runtime.engine.kv import KvCache
from hotcold.runtime.exchange.segment import Poison, PoisonCode
from hotcold.runtime.model.checkpoints.layout import layout

SLOW_DISK = 50e6  # bytes a second: weights may have to be read before the actors are ready
NOT_INSTALLED = "No module named 'hotcold'"  # how Ray words that a worker cannot load an actor


class ActorGroup:
    """The running actors of an engine.

    Args:
        deployment: what to run first; `load` replaces it.
        name: prefix of the actors' names.
        group: the caller's placement group, or None to make one.
        private_ray: this process started the Ray it is in, which must end with it.
        stuck_s: an actor that is stopped for longer counts as dead.

    Attributes:
        processes: of the actors.
        epoch: the one that runs, or is about to.
        epoch_running: number of the last epoch whose loops were begun; 0 before the first.
        losses: of actors, that it recovered from.
        closing: set before `close`, so that nobody goes on waiting.

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
        self.deployment = deployment
        self.epoch = Epoch(is_healthy=False)
        self.epoch_running = self._number = self.losses = 0
        self.closing = self._closed = False
        self._lock = threading.RLock()
        self._kv: KvCache | None = None
        self._private_ray = private_ray
        self._mps = MpsSession()
        self.processes = ActorProcesses(
            name, group, stuck_s, deployment.topology, unwanted=lambda: self.closing
        )
        try:
            self.processes.start(self.actors)
            self.load(deployment)
        except RayError as error:
            lost = self.processes.lost(error)
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

    @property
    def actors(self) -> tuple[str, ...]:
        """Their labels."""
        return self.deployment.topology.actors

    @property
    def _leader(self) -> str:
        return self.deployment.topology.leader.actor

    def load(self, deployment: Deployment) -> None:
        """Begin a new epoch with this deployment; the actors stay up.

        What is being generated goes on with it, at the token it had come to.

        Raises:
            HotcoldError: an actor refused it; the one before runs again.
        """
        with self._lock:
            self._end_epoch(self._leader)
            if self._kv is not None:
                self._kv.plan += 1
            before = self.deployment if self.epoch_running else None
            version = (before.version + 1, before.moved) if before is not None else (0, 0)
            self.deployment = replace(deployment, version=version[0], moved=version[1])
            try:
                self._begin_epoch()
            except BaseException:
                if before is not None and not self._closed:
                    self._end_epoch(self._leader)
                    self.deployment = before
                    self._begin_epoch()
                raise

    def moved_to(self, deployment: Deployment) -> None:
        """The running epoch has become this by moves."""
        now = self.deployment
        self.deployment = replace(deployment, version=now.version, moved=now.moved)

    @property
    def current(self) -> Deployment:
        """What runs now, whoever has moved neurons since it was loaded."""
        found = self.epoch.current(self.deployment)
        if found is not self.deployment:  # another driver did: the GPU executor knows its plan
            try:
                said = ray.get(
                    self.processes.handles[self._leader].describe.remote(), timeout=END_S
                )
            except (KeyError, RayError):
                return found
            if not np.array_equal(said.plan.device_LN, found.plan.device_LN):
                return found
            self.deployment = found = said
        return found

    def load_asked(self) -> bool:
        """Load the plan another driver asked for; whether the epoch was ended for that."""
        with self._lock:
            poison = self.epoch.poison
            if self._closed or poison is None or not poison.replaces_plan:
                return False
            try:
                gpu = self.processes.handles[self._leader]
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
        self._number += 1
        deployment = self.deployment
        environments = self._mps.begin(deployment)
        pids = self.processes.pids | self._mps.pids
        if deployment.shares_memory:
            if self._kv is None and leading_class(deployment).keeps_kv:
                self._kv = KvCache.create(deployment.spec, deployment.context, deployment.sequences)
            self.epoch = SharedEpoch(deployment, self._number, pids)
        else:
            self.epoch = Epoch(is_healthy=True)
        try:
            self._load_all({**pids, os.getpid(): "driver"}, environments)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HotcoldError):
                raise error.cause from None
            raise
        self.epoch.run(self.processes.handles)
        self.epoch_running = self._number

    def _load_all(self, pids: dict[int, str], environments: dict[str, dict[str, str]]) -> None:
        data, handle = ray.put(self.deployment), self.epoch.handle
        agents = ray_agents(os.getpid()) if self._private_ray else ()
        limit_s = START_S + layout(self.deployment.spec)[1] / SLOW_DISK

        def load(actors: list[str], shared: Shared) -> list[Mailbox | None]:
            refs = []
            for actor in actors:
                own = self.processes.facts[actor].pid
                peers = {pid: who for pid, who in pids.items() if pid != own}
                load = self.processes.handles[actor].load
                arguments = (handle, peers, agents, shared, environments.get(actor), self.losses)
                refs.append(load.remote(data, *arguments))
            return self.processes.answers(refs, limit_s)

        classes = executor_classes(self.deployment)
        later = [actor for actor in self.actors if classes[actor].opens_mailbox]
        kv = None if self._kv is None else self._kv.handle
        made = load([actor for actor in self.actors if actor not in later], Shared(kv))
        if later:
            load(later, Shared(mailbox=next(filter(None, made), None)))

    def _end_epoch(self, on_behalf_of: str = "driver") -> None:
        """Poison the running epoch and wait until every loop has returned.

        Closed in an actor's name it means that another plan follows (`PlanReplaced`).
        """
        epoch = self.epoch
        if epoch.handle is None:
            return
        epoch.end(PoisonCode.CLOSED, on_behalf_of)
        epoch.running(self.actors, END_S)
        now, (version, moved) = epoch.current(self.deployment), epoch.ownership()
        self.deployment = replace(now, version=now.version + version, moved=now.moved + moved)
        epoch.close()
        self.epoch = Epoch(is_healthy=False)
        self._mps.unload(self.processes.handles)

    def rebuild(self, must_go: str | None = None) -> tuple[float, float, float]:
        """Replace the actors that are gone, and begin a new epoch with the same deployment.

        May be called again where it failed. `must_go` is an actor that is alive but cannot go on.
        Returns seconds until all loops had ended, until the new actors answered, until all ran.

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
            self.losses += 1
            try:
                self.processes.start(lost)
                started = time.monotonic()
                self._begin_epoch()
                self._check_open()
            except BaseException:
                self.losses -= 1
                if self._closed:  # meanwhile, from this very thread: by a signal, by collection
                    self._kill(self.actors)
                raise
            return ended - begin, started - ended, time.monotonic() - started

    def _check_open(self) -> None:
        if self.closing:
            raise LaunchError("the engine is closed")

    def _lost_now(self, must_go: str | None) -> list[str]:
        processes = self.processes
        gone = {must_go, *processes.starting, *processes.gone, *processes.stopped}
        gone |= self.epoch.running([actor for actor in self.actors if actor not in gone], END_S)
        gone = self._mps.lost(gone)
        return [actor for actor in self.actors if actor in gone]

    def _kill(self, names: list[str] | tuple[str, ...]) -> None:
        self._mps.end(self.processes.end(names))

    def poison_within(self, timeout_s: float) -> Poison | None:
        """The exchange's poison, waited for at most so long; None where it is healthy."""
        epoch = self.epoch
        poison = epoch.poison_within(timeout_s)
        if epoch.handle is None and not self.closing:
            # Nothing can be poisoned (Ray transport): an actor whose process has ended.
            return next((Poison(PoisonCode.DIED, actor) for actor in self.processes.gone), None)
        return poison

    def stopped(self, stops: Stops) -> str | None:
        """An actor that has been stopped for too long, whether or not a pass runs."""
        pids = self.processes.pids
        return next((pids[pid] for pid in stops.too_long(pids)), None)

    def poison_stuck(self, actor: str | None = None) -> str:
        """Poison the exchange for an actor, or else for the one that holds up the running pass."""
        epoch = self.epoch
        actor = actor or next(iter(self.processes.stopped), None) or epoch.holding_up()
        epoch.end(PoisonCode.STUCK, actor)
        return actor

    @property
    def is_whole(self) -> bool:
        """Whether all actors live and run the latest epoch, and nothing has poisoned it."""
        living = not (self.processes.gone or self.processes.stopped)
        return self.epoch.is_healthy and living and self.epoch_running == self._number

    def close(self) -> None:
        """Take everything down; idempotent, and safe after any failure of the constructor."""
        self.closing = True
        with self._lock:
            self._closed = True
            self._end_epoch()
            self._kill(self.actors)
            self.processes.close()
            if self._kv is not None:
                self._kv.close()
            self._kv = None  # its arrays would keep the memory for as long as the engine is held
