"""Waiting for actors' answers without trusting them to come.

Used by the actor group while it starts, loads and replaces actors. Ray reports an actor that ends
at once, but not one that is stopped, so that is ended here once it has been stopped for too long;
one that neither answers nor stops meets the deadline.
"""

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ray

from hotcold.actors.cluster.processes import is_stopped
from hotcold.native.errors import LaunchError

LOOK_S = 0.2


def gather(
    refs: Sequence[Any],
    pids: Iterable[int],
    stuck_s: float,
    timeout_s: float,
    unwanted: Callable[[], bool],
) -> list[Any]:
    """The results of actor calls, in order.

    Raises:
        RayError: a call failed, or its actor ended.
        LaunchError: no answer in time, or unwanted.
    """
    deadline, stops = time.monotonic() + timeout_s, Stops(stuck_s)
    while True:
        done, waiting = ray.wait(list(refs), num_returns=len(refs), timeout=LOOK_S)
        ray.get(done)  # raises what has failed already
        if not waiting:
            return list(ray.get(list(refs)))
        if unwanted():
            raise LaunchError("the engine is closing")
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{len(waiting)} of the actors gave no answer in {timeout_s:.0f} s; look at the "
                "load of this machine"
            )
        for pid in stops.too_long(pids):
            os.kill(pid, signal.SIGKILL)


class Stops:
    """Which processes have been stopped for longer than a limit; to be asked again and again."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[int, float] = {}

    def too_long(self, pids: Iterable[int]) -> list[int]:
        """Those stopped at every look since longer than the limit."""
        now = time.monotonic()
        self._since = {pid: self._since.get(pid, now) for pid in pids if is_stopped(pid)}
        return [pid for pid, since in self._since.items() if now - since > self._limit_s]
