"""The supervisor: watches a trio, and rebuilds what was lost so that generations go on.

One thread in the driver that launched the engine. It sleeps on the exchange: a death poisons it
within milliseconds (pidfd watchers in every process), an actor that makes no progress while a pass
runs is found by its counter. Either way the lost actors are replaced, the others keep their
processes and weights, and a new epoch begins on a new segment. A generation then goes on by itself:
its keys and values are in the driver's KV memory, its draws depend on (seed, position) alone.

Bounded: a generation survives `restarts` losses; a trio that cannot be rebuilt is given up.
"""

import threading
import time
from dataclasses import dataclass

from hotcold.actors.trio import Trio
from hotcold.runtime.errors import ActorLostError
from hotcold.runtime.exchange import PoisonCode

LOOK_S = 0.1


@dataclass(frozen=True)
class Recovery:
    """One recovery, seconds by phase.

    Args:
        actor: the one that was lost first.
        cause: "died", "failed" or "stuck".
        end_s: until every other loop had returned.
        start_s: until the new actors answered.
        load_s: until everyone had the plan and the loops ran.
    """

    actor: str
    cause: str
    end_s: float
    start_s: float
    load_s: float

    @property
    def total_s(self) -> float:
        """All phases."""
        return self.end_s + self.start_s + self.load_s


class Supervisor:
    """Keeps a trio running until it is closed.

    Args:
        trio: what to watch.
        stuck_s: a running pass without progress for so long means its actor is lost.
    """

    def __init__(self, trio: Trio, stuck_s: float) -> None:
        self._trio, self._stuck_s = trio, stuck_s
        self._changed = threading.Condition()
        self._closing = False
        self._given_up: BaseException | None = None
        self.recoveries: list[Recovery] = []
        self._thread = threading.Thread(target=self._run, name="hotcold-supervisor", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        progress, since = -1, time.monotonic()
        while not self._closing:
            poison = self._trio.poison_within(LOOK_S)
            if poison is None:
                now = self._trio.running_progress()
                if now is None or now != progress:
                    progress, since = -1 if now is None else now, time.monotonic()
                elif time.monotonic() - since > self._stuck_s:
                    self._trio.poison_stuck()
                continue
            if poison.code is PoisonCode.CLOSED or self._closing:
                if not self._trio.load_asked():
                    time.sleep(LOOK_S)  # a new plan is being loaded, or the engine closes
                continue
            self._recover(poison.code.name.lower(), poison.actor)
            progress, since = -1, time.monotonic()

    def _recover(self, cause: str, actor: str) -> None:
        try:
            end_s, start_s, load_s = self._trio.rebuild(actor if cause == "stuck" else None)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            with self._changed:
                self._given_up = error
                self._closing = True
                self._changed.notify_all()
            return
        with self._changed:
            self.recoveries.append(Recovery(actor, cause, end_s, start_s, load_s))
            self._changed.notify_all()

    @property
    def epoch(self) -> int:
        """The running epoch."""
        return self._trio.epoch_running

    def await_epoch(self, after: int, timeout_s: float) -> None:
        """Wait until a later epoch than `after` runs.

        Raises:
            ActorLostError: the trio was given up, is closing, or takes too long.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._trio.epoch_running <= after:
                left = deadline - time.monotonic()
                if self._given_up is not None:
                    raise ActorLostError(
                        "gpu", f"the actors could not be rebuilt: {self._given_up}"
                    )
                if self._closing or left <= 0:
                    raise ActorLostError("gpu", "the engine is closing or could not recover")
                self._changed.wait(min(left, LOOK_S))

    def close(self) -> None:
        """End the thread; idempotent, also from the thread itself."""
        self._closing = True
        if threading.current_thread() is not self._thread:
            self._thread.join()
