"""The supervisor: watches a group, and rebuilds what was lost so that generations go on.

One thread in the driver that launched the engine. It sleeps on the exchange: a death poisons it
within milliseconds (pidfd watchers in every process), an actor that makes no progress while a pass
runs is found by its counter, one that is stopped by its state. Then the lost actors are replaced,
the others keep their processes and weights, and a new epoch begins on a new segment. A generation
then goes on by itself: its keys and values are in the driver's KV memory, or are computed again,
and its draws depend on (seed, position) alone.

Bounded: a generation survives `restarts` losses; an actor group that cannot be rebuilt in a few
tries is given up.
"""

import threading
import time
from dataclasses import dataclass, replace

from hotcold.actors.group.actor_group import ActorGroup
from hotcold.actors.group.answers import Stops
from hotcold.native.errors import ActorLostError
from hotcold.runtime.exchange.segment import PoisonCode
from hotcold.runtime.topology import CLASSIC

LEADER = CLASSIC.leader.actor  # named where nobody knows who is at fault
LOOK_S = 0.1
TRIES = 4  # of one recovery: actors may be lost again while it lasts
PAUSE_S = 0.2  # between them, longer each time


@dataclass(frozen=True)
class Recovery:
    """One recovery, seconds by phase.

    Args:
        actor: the one that was lost first.
        cause: "died", "failed" or "stuck".
        end_s: until every other loop had returned, once the loss was known.
        start_s: until the new actors answered.
        load_s: until everyone had the plan and the loops ran.
        notice_s: until the loss was known, from the beginning of the pass it struck, or from the
            last progress of an actor that was stuck; 0 between passes.
        replay_s: from there to the next token of the generation it struck; 0 without one.
    """

    actor: str
    cause: str
    end_s: float
    start_s: float
    load_s: float
    notice_s: float = 0.0
    replay_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All phases."""
        return self.notice_s + self.end_s + self.start_s + self.load_s + self.replay_s

    def __str__(self) -> str:
        return (
            f"recovered from the loss of the {self.actor} actor ({self.cause}) in "
            f"{self.total_s:.2f} s: {self.notice_s:.2f} s to notice, {self.end_s:.2f} s until the "
            f"others had stopped, {self.start_s:.2f} s to start, {self.load_s:.2f} s to load, "
            f"{self.replay_s:.2f} s to the next token"
        )


class Supervisor:
    """Keeps an actor group running until it is closed.

    A running pass without progress for `stuck_s` means that its actor is lost.
    """

    def __init__(self, group: ActorGroup, stuck_s: float) -> None:
        self._group, self._stuck_s = group, stuck_s
        self._changed = threading.Condition()
        self._closing = False
        self._given_up: BaseException | None = None
        self.recoveries: list[Recovery] = []
        self._thread = threading.Thread(target=self._run, name="hotcold-supervisor", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        watch = _Watch(self._group, self._stuck_s)
        while not self._closing:
            poison = self._group.poison_within(LOOK_S)
            if poison is None:
                stuck = watch.stuck()
                if stuck is not None:
                    self._recover("stuck", stuck, watch.quiet_s)
                    watch = _Watch(self._group, self._stuck_s)
            elif poison.code is PoisonCode.CLOSED or self._closing:
                if not self._group.load_asked():
                    time.sleep(LOOK_S)  # a new plan is being loaded, or the engine closes
            else:
                self._recover(
                    poison.code.name.lower(), poison.actor, self._group.epoch.pass_age_s()
                )
                watch = _Watch(self._group, self._stuck_s)

    def _recover(self, cause: str, actor: str, notice_s: float) -> None:
        must_go = None if cause == "died" else actor
        begin = time.monotonic()
        for attempt in range(1, TRIES + 1):
            tried_s = time.monotonic() - begin
            try:
                end_s, start_s, load_s = self._group.rebuild(must_go)
                break
            except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
                if attempt == TRIES or self._closing:
                    with self._changed:
                        self._given_up, self._closing = error, True
                        self._changed.notify_all()
                    return
                time.sleep(PAUSE_S * attempt)
                must_go = None
        with self._changed:
            recovery = Recovery(actor, cause, end_s + tried_s, start_s, load_s, notice_s)
            self.recoveries.append(recovery)
            self._changed.notify_all()

    def replayed(self, seconds: float) -> None:
        """A generation got its next token so long after the new epoch had begun."""
        with self._changed:
            if self.recoveries:
                self.recoveries[-1] = replace(self.recoveries[-1], replay_s=seconds)

    @property
    def epoch(self) -> int:
        """The running epoch."""
        return self._group.epoch_running

    def await_epoch(self, after: int, timeout_s: float) -> None:
        """Wait until a later epoch than `after` runs.

        Raises:
            ActorLostError: the actor group was given up, is closing, or takes too long.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._group.epoch_running <= after:
                left = deadline - time.monotonic()
                if self._given_up is not None:
                    raise ActorLostError(
                        LEADER, f"the actors could not be rebuilt: {self._given_up}"
                    )
                if self._closing or left <= 0:
                    raise ActorLostError(LEADER, "the engine is closing or could not recover")
                self._changed.wait(min(left, LOOK_S))

    def close(self) -> None:
        """End the thread; idempotent, also from the thread itself."""
        self._closing = self._group.closing = True
        if threading.current_thread() is not self._thread:
            self._thread.join()


class _Watch:
    """Looks for actors that are alive but stuck, since some moment."""

    def __init__(self, group: ActorGroup, limit_s: float) -> None:
        self._group, self._limit_s = group, limit_s
        self._stops = Stops(limit_s)
        self._progress: int | None = None
        self._since = time.monotonic()

    @property
    def quiet_s(self) -> float:
        """How long nothing has moved."""
        return time.monotonic() - self._since

    def stuck(self) -> str | None:
        """The actor that is stuck, the exchange poisoned for it; None: all is well."""
        progress, stopped = self._group.epoch.progress(), self._group.stopped(self._stops)
        if progress is None or progress != self._progress:
            self._progress, self._since = progress, time.monotonic()
        elif self.quiet_s > self._limit_s:
            return self._group.poison_stuck()
        return None if stopped is None else self._group.poison_stuck(stopped)
