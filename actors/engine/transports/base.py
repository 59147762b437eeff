"""What a client asks of a transport, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.moving import Moved
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

    def move(self, to: Deployment, rate: int, anew: bool) -> Moved | None:
        """Become another deployment by moves alone, while tokens run; None: that cannot be.

        rate: bytes of records a second. anew: counters begin again, as under a new plan.

        Raises:
            HotcoldError: it failed, and all is as it was; or the exchange was poisoned meanwhile.
        """
        return None

    def ownership(self) -> tuple[int, int]:
        """Version of the table of owners, and neurons moved, since the launch."""
        return self._deployment.version, self._deployment.moved

    @abstractmethod
    def ask(self, deployment: Deployment) -> None:
        """Have the driver that owns the actors load another deployment.

        Raises:
            ConfigError: it may not be asked; made for another machine.
            HotcoldError: the actors refused it; the one before runs.
        """
