"""The trio: three actors and the exchange between them, from creation to the last freed byte.

Owned by the driver that launched an engine. It makes the segment of each epoch, watches the actors'
processes natively (a death poisons the exchange in about 9 ms), turns what happened into a typed
error, and takes everything down in the one order that leaves nothing: poison, wait for the loops,
kill, remove the placement group.
"""

import os
import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hotcold.actors import cluster
from hotcold.actors.executors import Facts, remote_class
from hotcold.native.segment import Watcher
from hotcold.runtime.deployment import Deployment
from hotcold.runtime.errors import ActorLostError, ConfigError, HotcoldError, LaunchError
from hotcold.runtime.exchange import ACTORS, PoisonCode, Segment

START_S = 120.0
END_S = 3.0


class Trio:
    """Three running actors.

    Args:
        deployment: what to run first; `load` replaces it.
        name: prefix of the actors' names.
        group: the caller's placement group, or None to make one.

    Raises:
        ConfigError: the name is taken.
        LaunchError: the actors cannot be started.
    """

    def __init__(
        self, deployment: Deployment, name: str, group: PlacementGroup | None = None
    ) -> None:
        self.name, self.deployment = name, deployment
        self.actors: dict[str, Any] = {}
        self.facts: dict[str, Facts] = {}
        self._segment: Segment | None = None
        self._watcher: Watcher | None = None
        self._loops: dict[str, Any] = {}
        self._epoch = 0
        _check_name(name)
        self._own_group = group is None
        self._group: Any = group
        cpus = cluster.cpu_fractions(deployment.cores, 0.0)
        if group is None:
            self._group, cpus = cluster.reserve(deployment.cores, name)
        try:
            self._start(cpus)
            self.load(deployment)
        except RayError as error:
            lost = self.lost(error)
            self.close()
            raise LaunchError(f"the actors could not be started: {lost}") from error
        except BaseException:
            self.close()
            raise

    def _start(self, cpus: dict[str, float]) -> None:
        placed = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=0)
        passed_on = {key: value for key, value in os.environ.items() if key.startswith("HOTCOLD_")}
        for actor in ACTORS:
            self.actors[actor] = (
                remote_class(actor)
                .options(
                    name=f"{self.name}-{actor}",
                    namespace=cluster.NAMESPACE,
                    num_cpus=cpus[actor],
                    scheduling_strategy=placed,
                    runtime_env={"env_vars": {**cluster.WORKER_ENV, **passed_on}},
                )
                .remote()
            )
        refs = [self.actors[actor].facts.remote() for actor in ACTORS]
        self.facts = dict(zip(ACTORS, ray.get(refs, timeout=START_S), strict=True))

    def load(self, deployment: Deployment) -> None:
        """Begin a new epoch with this deployment; the actors stay up.

        Raises:
            HotcoldError: an actor refused it.
        """
        self._end_epoch()
        self._epoch += 1
        self.deployment = deployment
        pids = {facts.pid: actor for actor, facts in self.facts.items()}
        handle = None
        if deployment.transport == "native":
            self._segment = Segment.create(deployment.layout, self._epoch)
            self._watcher = self._segment.watch(pids)
            handle = self._segment.handle
        data = ray.put(deployment)
        everyone = {**pids, os.getpid(): "driver"}
        refs = []
        for actor in ACTORS:
            peers = {p: who for p, who in everyone.items() if p != self.facts[actor].pid}
            refs.append(self.actors[actor].load.remote(data, handle, peers))
        try:
            ray.get(refs, timeout=START_S)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HotcoldError):
                raise error.cause from None
            raise
        if handle is not None:
            self._loops = {actor: self.actors[actor].loop.remote() for actor in ACTORS}

    def _end_epoch(self) -> None:
        """Poison the running epoch and wait until every loop has returned."""
        if self._segment is None:
            return
        self._segment.poison(PoisonCode.CLOSED)
        if self._loops:
            ray.wait(list(self._loops.values()), num_returns=len(self._loops), timeout=END_S)
        if self._watcher is not None:
            self._watcher.close()
        self._segment.close()
        self._segment, self._watcher, self._loops = None, None, {}

    def lost(self, error: BaseException) -> BaseException:
        """The typed error behind what Ray or the exchange reported; error itself if none is."""
        if isinstance(error, ray.exceptions.RayTaskError):
            return error.cause if isinstance(error.cause, HotcoldError) else error
        if not isinstance(error, ActorDiedError | ActorUnavailableError):
            return error
        deadline = time.monotonic() + 1.0
        while self._segment is not None and time.monotonic() < deadline:
            if self._segment.poisoned is not None:
                return self._poison_error()
            time.sleep(0.005)
        for actor, handle in self.actors.items():
            if handle._actor_id.hex() == error.actor_id:
                return ActorLostError(actor, f"the {actor} actor died; launch the engine again")
        return ActorLostError("gpu", "an actor died; launch the engine again")

    def _poison_error(self) -> BaseException:
        assert self._segment is not None
        try:
            self._segment.raise_if_poisoned()
        except HotcoldError as error:
            return error
        return ActorLostError("gpu", "the exchange ended; launch the engine again")

    def close(self) -> None:
        """Take everything down; idempotent, and safe after any failure of the constructor."""
        self._end_epoch()
        actors, self.actors = self.actors, {}
        for handle in actors.values():
            ray.kill(handle, no_restart=True)
        deadline = time.monotonic() + END_S
        for facts in self.facts.values():
            while os.path.exists(f"/proc/{facts.pid}") and time.monotonic() < deadline:
                time.sleep(0.005)
        if self._own_group and self._group is not None:
            remove_placement_group(self._group)
        self._group = None


def _check_name(name: str) -> None:
    """Refuse a name that is empty, odd, or taken."""
    if not name or not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(f"engine name {name!r} must be letters, digits, '-', '_' and '.'")
    try:
        ray.get_actor(f"{name}-gpu", namespace=cluster.NAMESPACE)
    except ValueError:
        return
    raise ConfigError(
        f"an engine named {name!r} is running in this cluster; connect to it or choose another name"
    )
