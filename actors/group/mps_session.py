"""The MPS daemon of an actor group whose predictor has a process of its own on the GPU.

Owned by the actor group. A client that dies with a kernel in flight leaves the daemon's server and
the other client undefined, so the three go together: when one is lost, all are replaced. The daemon
is ended last, since it waits for its clients. Where the predictor is fused, or there is no GPU,
nothing here does anything.
"""

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from hotcold.native.gpu.mps import Daemon
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.topology import CLASSIC

PREDICTOR = CLASSIC.predictor.actor
CLIENTS = (CLASSIC.leader.actor, PREDICTOR)
UNLOAD_S = 5.0


class MpsSession:
    """A private daemon while a deployment needs one."""

    def __init__(self) -> None:
        self._daemon: Daemon | None = None

    def begin(self, deployment: Deployment) -> dict[str, dict[str, str]]:
        """Have a daemon running if the deployment needs one.

        Returns by client, what it must have in its environment; empty where there is no daemon.

        Raises:
            BackendError: it does not start.
        """
        if deployment.gpu is None or not deployment.gpu.remote_predictor:
            return {}
        if self._daemon is None:
            self._daemon = Daemon()
        return dict.fromkeys(CLIENTS, self._daemon.environment)

    @property
    def pids(self) -> dict[int, str]:
        """The process whose end is the daemon's, counted as the predictor's."""
        return {} if self._daemon is None else {self._daemon.pid: PREDICTOR}

    def unload(self, actors: dict[str, Any]) -> None:
        """Have the predictor give up the GPU executor's memory, before that frees it."""
        if self._daemon is not None and PREDICTOR in actors:
            with suppress(RayError):  # it is gone, or stopped: then both are replaced
                ray.get(actors[PREDICTOR].unload.remote(), timeout=UNLOAD_S)

    def lost(self, gone: set[str | None]) -> set[str | None]:
        """Who must be replaced as well: all clients where one of them or the daemon is lost."""
        if self._daemon is None or self._daemon.is_running and not gone.intersection(CLIENTS):
            return gone
        return gone | set(CLIENTS)

    def end(self, killed: list[str]) -> None:
        """End the daemon where its clients were; idempotent."""
        if self._daemon is not None and set(CLIENTS) <= set(killed):
            self._daemon.close()
            self._daemon = None
