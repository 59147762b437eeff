"""Finding the actors of an engine by their names, at once and after their owner rebuilt them."""

import time
from typing import Any

import ray
from ray.exceptions import RayError

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.native.errors import ActorLostError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.topology import CLASSIC

LEADER = CLASSIC.leader.actor


def find_actors(name: str) -> tuple[dict[str, Any], Deployment]:
    """Ray handles of a running engine's actors, and what they run.

    Raises:
        ValueError: one is not there.
        RayError: the first GPU executor, which knows the others, does not answer.
    """

    def found(actor: str) -> Any:
        return ray.get_actor(f"{name}-{actor}", namespace=cluster.NAMESPACE)

    deployment: Deployment = ray.get(found(LEADER).describe.remote())
    return {actor: found(actor) for actor in deployment.topology.actors}, deployment


class Lookup:
    """For connected engines: finds the actors again by name after their owner rebuilt them."""

    def __init__(self, name: str, actors: dict[str, Any]) -> None:
        self._name, self._actors = name, actors
        self.epoch = 0

    def replayed(self, seconds: float) -> None:
        """Nobody here keeps the times of recoveries; the owner does."""

    def await_epoch(self, after: int, timeout_s: float) -> None:
        """Wait until all actors answer to their names again."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                found = {
                    actor: ray.get_actor(f"{self._name}-{actor}", namespace=cluster.NAMESPACE)
                    for actor in self._actors
                }
                ray.get([handle.ready.remote() for handle in found.values()], timeout=timeout_s)
                self._actors.update(found)
                self.epoch = after + 1
                return
            except (ValueError, RayError):
                time.sleep(0.05)
        raise ActorLostError(LEADER, f"the engine {self._name!r} did not come back")
