"""The native transport: shared memory between the executors; the GPU executor leads."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import ray
from numpy.typing import NDArray

from hotcold.actors.engine.transports.base import Transport
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.moving import Moved
from hotcold.runtime.engine.request import Sampled
from hotcold.runtime.exchange.segment import ActorState


class NativeTransport(Transport):
    """One call a request, its tokens streamed back; the segment has everybody's counters."""

    name = "native"

    @property
    def _leader(self) -> Any:
        return self._actor(self._deployment.topology.leader.actor)

    @property
    def sequences(self) -> int:
        """As many as the deployment has room for."""
        return self._deployment.sequences

    def attempt(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        """One streaming call."""
        stream = self._leader.generate.options(num_returns="streaming")
        for ref in stream.remote(request):
            item = ray.get(ref)
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self, request: Request) -> None:
        """Not waited for: it may arrive when another one runs."""
        self._leader.cancel.remote(request.id)

    def score(self, request: Request) -> NDArray[np.float32]:
        """One call."""
        vocab = self._deployment.spec.vocab_size
        return cast(NDArray[np.float32], ray.get(self._leader.score.remote(request, vocab)))

    def states(self) -> dict[str, ActorState]:
        """As the GPU executor reads them."""
        return cast(dict[str, ActorState], ray.get(self._leader.states.remote()))

    def spans(self) -> dict[str, NDArray[np.void]]:
        """As the GPU executor reads them."""
        actors = self._deployment.topology.actors
        return cast(dict[str, NDArray[np.void]], ray.get(self._leader.spans.remote(actors)))

    def phases(self) -> dict[str, float]:
        """Of the newest passes."""
        return cast(dict[str, float], ray.get(self._leader.phases.remote()))

    def move(self, to: Deployment, rate: int, anew: bool) -> Moved | None:
        """Led by the GPU executor, beside its loop."""
        topology = self._deployment.topology
        others = (actor for actor in topology.actors if actor != topology.leader.actor)
        peers = {actor: self._actor(actor) for actor in others}
        return cast(Moved | None, ray.get(self._leader.move.remote(to, peers, rate, anew)))

    def ownership(self) -> tuple[int, int]:
        """As the GPU executor reads it."""
        return cast(tuple[int, int], ray.get(self._leader.ownership.remote()))

    def ask(self, deployment: Deployment) -> None:
        """Through the GPU executor, whose epoch ends for it."""
        now = self._deployment
        if (deployment.gpu is None, deployment.bundle_path) != (now.gpu is None, now.bundle_path):
            raise ConfigError(
                f"this driver sees the model at {deployment.bundle_path}, the engine at "
                f"{now.bundle_path}, or another GPU; replan from a driver on the engine's node"
            )
        ray.get(self._leader.ask.remote(deployment))
