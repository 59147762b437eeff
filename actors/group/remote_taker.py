"""A device that keeps records of its own, in another actor: its side of a move, by calls."""

from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from hotcold.native.errors import ActorLostError, HotcoldError
from hotcold.runtime.engine.moving import Places
from hotcold.runtime.exchange.segment import Segment

NOTICE_S = 2.0  # until a watcher has poisoned the exchange for a dead actor: milliseconds


class RemoteTaker:
    """Calls `take` and `drop` of an actor; what fails comes out typed."""

    def __init__(self, actor: str, handle: Any, segment: Segment) -> None:
        self._actor, self._handle, self._segment = actor, handle, segment

    def take(self, places: Places) -> int:
        """How many of the first it has room for."""
        return int(self._call(self._handle.take, places))

    def drop(self, places: Places) -> None:
        """Free their slots."""
        self._call(self._handle.drop, places)

    def _call(self, method: Any, places: Places) -> Any:
        try:
            return ray.get(method.remote(places))
        except RayTaskError as error:
            if isinstance(error.cause, HotcoldError):
                raise error.cause from None
            raise
        except RayError:
            never = self._segment.native.n_flags - 1
            self._segment.wait(never, (1 << 32) - 1, NOTICE_S)  # until poison says who died
            raise ActorLostError(self._actor, f"the {self._actor} actor died") from None
