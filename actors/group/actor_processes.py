"""The processes of a group's actors: started in a placement group, awaited, ended."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.actors.cluster.processes import is_gone, is_stopped
from hotcold.actors.group import answers
from hotcold.actors.group.executor_actors import Facts, remote_class
from hotcold.native.errors import ActorLostError, HotcoldError
from hotcold.runtime.topology import Topology

START_S = 120.0
END_S = cluster.END_S


class ActorProcesses:
    """Actors by name, and where they run.

    `unwanted` says whether nobody waits for their answers any more.

    Attributes:
        handles: Ray's, by actor.
        facts: by actor.
        starting: actors whose facts are still of the ones they replace.

    Raises:
        ConfigError: the name is taken.
        LaunchError: the cluster has no room for them.
    """

    def __init__(
        self,
        name: str,
        group: PlacementGroup | None,
        stuck_s: float,
        topology: Topology,
        unwanted: Callable[[], bool],
    ) -> None:
        cluster.check_name(name)
        self.handles: dict[str, Any] = {}
        self.facts: dict[str, Facts] = {}
        self.starting: set[str] = set()
        self._names: dict[str, str] = {}  # actors by Ray's ids, lost ones included
        self._name, self._stuck_s, self._unwanted = name, stuck_s, unwanted
        self._topology = topology
        self._own_group = group is None
        self._group: Any = group
        if group is None:
            self._group = cluster.reserve(name, len(topology.actors))

    def start(self, names: Iterable[str]) -> None:
        """Create actors and wait until they answer."""
        self.starting |= set(names)
        for actor in names:
            self.handles[actor] = self._create(actor)
        refs = [self.handles[actor].facts.remote() for actor in names]
        self.facts.update(zip(names, self.answers(refs, START_S), strict=True))
        self.starting -= set(names)

    def _create(self, actor: str) -> Any:
        made = remote_class(self._topology.member(actor)).options(
            name=f"{self._name}-{actor}",
            namespace=cluster.NAMESPACE,
            num_cpus=cluster.ACTOR_CPUS,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=0
            ),
            **cluster.worker_options(),
        )
        deadline = time.monotonic() + END_S
        while True:
            try:
                handle = made.remote(actor)
                self._names[handle._actor_id.hex()] = actor
                return handle
            except ValueError:  # the name of the one it replaces is not free yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def answers(self, refs: list[Any], timeout_s: float) -> list[Any]:
        """Results of actor calls; whoever is stopped meanwhile for too long is ended."""
        pids = [facts.pid for actor, facts in self.facts.items() if actor not in self.starting]
        return answers.gather(refs, pids, self._stuck_s, timeout_s, self._unwanted)

    @property
    def pids(self) -> dict[int, str]:
        """Actors by process."""
        return {facts.pid: actor for actor, facts in list(self.facts.items())}

    @property
    def gone(self) -> list[str]:
        """Actors whose processes have ended."""
        return [actor for pid, actor in self.pids.items() if is_gone(pid)]

    @property
    def stopped(self) -> list[str]:
        """Actors whose processes are stopped."""
        return [actor for pid, actor in self.pids.items() if is_stopped(pid)]

    def end(self, names: Iterable[str]) -> list[str]:
        """End those of some actors that there are, and wait until their processes are gone."""
        names = [actor for actor in names if actor in self.handles]
        pids = [self.facts[actor].pid for actor in names if actor in self.facts]
        cluster.kill_actors([self.handles[actor] for actor in names], pids)
        return names

    def lost(self, error: BaseException) -> BaseException:
        """The typed error behind what Ray or the exchange reported; error itself if none is."""
        if isinstance(error, ray.exceptions.RayTaskError):
            return error.cause if isinstance(error.cause, HotcoldError) else error
        if not isinstance(error, ActorDiedError | ActorUnavailableError):
            return error
        actor = self._names.get(error.actor_id, self._topology.leader.actor)
        return ActorLostError(actor, f"the {actor} actor died; launch the engine again")

    def close(self) -> None:
        """Forget the actors, which were ended, and give up the placement group; idempotent."""
        self.handles.clear()
        if self._own_group and self._group is not None and not cluster.is_last():
            remove_placement_group(self._group)
        self._group = None
