"""What a client asks of a transport, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.request import Sampled
from hotcold.runtime.exchange.segment import ActorState


class Transport(ABC):
    """Calls on the actors of one deployment; holds nothing between them.

    All methods raise ConfigError where the engine is closed, and RayError as Ray does.
    """

    name: ClassVar[str]
    one_at_a_time: ClassVar[bool] = False  # generations, new plans, logits

    def __init__(self, deployment: Deployment, actor: Callable[[str], Any]) -> None:
        self._deployment, self._actor = deployment, actor

    @property
    def sequences(self) -> int:
        """Requests that may run at the same time."""
        return 1

    @abstractmethod
    def attempt(self, request: Request) -> Iterator[Sampled | RequestTimes]:
        """Run a request on the actors there are now; its times come last.

        Raises:
            HotcoldError: what the executor says.
        """

    @abstractmethod
    def cancel(self, request: Request) -> None:
        """End a request after its current token; before its first where it waits."""

    @abstractmethod
    def score(self, request: Request) -> NDArray[np.float32]:
        """Logits [T, V] of a prompt."""

    @abstractmethod
    def states(self) -> dict[str, ActorState]:
        """Counters of all actors."""

    @abstractmethod
    def spans(self) -> dict[str, NDArray[np.void]]:
        """Rings of the last steps, by actor."""

    def phases(self) -> dict[str, float]:
        """Seconds a pass by phase; empty where no one keeps them."""
        return {}

    @abstractmethod
    def ask(self, deployment: Deployment) -> None:
        """Have the driver that owns the actors load another deployment.

        Raises:
            ConfigError: it may not be asked; made for another machine.
            HotcoldError: the actors refused it; the one before runs.
        """
