"""Finding the actors of an engine by their names, at once and after their owner rebuilt them."""

import time
from typing import Any

import ray
from ray.exceptions import RayError

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.native.abi.names import ACTORS
from hotcold.native.errors import ActorLostError


def find_actors(name: str) -> dict[str, Any]:
    """Ray handles of a running engine's actors; ValueError where one is not there."""
    return {a: ray.get_actor(f"{name}-{a}", namespace=cluster.NAMESPACE) for a in ACTORS}


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
                found = find_actors(self._name)
                ray.get([handle.ready.remote() for handle in found.values()], timeout=timeout_s)
                self._actors.update(found)
                self.epoch = after + 1
                return
            except (ValueError, RayError):
                time.sleep(0.05)
        raise ActorLostError("gpu", f"the engine {self._name!r} did not come back")
