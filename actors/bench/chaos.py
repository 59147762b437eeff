"""Chaos: kill and stop actors at random steps, and check that the tokens do not change.

Called by `hotcold chaos`. A run is some generations at once, up to as many as the engine has
sequences and some that join later or leave early, all runs on one engine; what happens in a run is
drawn from the seed before it begins (faults.py). After every run all actors must be alive and hold
what they held before.
"""

import contextlib
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayError

from hotcold.actors.bench.faults import CASES, TOKENS, Drawn, Fault, draw, ops_of, strike
from hotcold.actors.cluster import footprint
from hotcold.actors.engine.engine import Engine
from hotcold.native.errors import HotcoldError

HANG_S = 90.0
WHOLE_S = 15.0


@dataclass
class Tally:
    """What happened.

    Attributes:
        runs, sequences, replans, recoveries, hangs, errors, wrong_tokens, leaks: counts.
        faults: those sent; some meet an actor that is already gone.
        recovery_s: seconds of every recovery.
        run_s: seconds of every run.
        slowest: the longest recovery by phase.
        complaints: what went wrong, in words.
    """

    runs: int = 0
    sequences: int = 0
    faults: int = 0
    replans: int = 0
    recoveries: int = 0
    hangs: int = 0
    errors: int = 0
    wrong_tokens: int = 0
    leaks: int = 0
    recovery_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    slowest: str = ""
    complaints: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the median and the longest times."""
        data = {**self.__dict__}
        for name in ("recovery_s", "run_s"):
            times, stem = data.pop(name), name.removesuffix("_s")
            data[f"{stem}_median_s"] = statistics.median(times) if times else None
            data[f"{stem}_max_s"] = max(times, default=None)
        return data

    def complain(self, kind: str, text: str, count: int = 1) -> None:
        """Count something that must not happen."""
        setattr(self, kind, getattr(self, kind) + count)
        self.complaints.append(f"run {self.runs}: {text}")

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""
        return not self.complaints


def run(
    launch: Callable[[], Engine],
    runs: int,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Run chaos. The caller has joined a Ray cluster."""
    rng, tally = random.Random(seed), Tally()
    nothing = footprint.take()
    engine = launch()
    ops = ops_of(engine.programs)
    try:
        expected = [list(_stream(engine, case, TOKENS, seed)) for case in range(len(CASES))]
        whole = footprint.take()
        for _ in range(runs):
            tally.runs += 1
            known, begin = len(engine.recoveries), time.monotonic()
            drawn = draw(rng, engine.sequences, ops)
            tally.sequences += len(drawn.asks)
            if _Disturbed(engine, drawn, seed, tally).check(expected):
                _check_whole(engine, whole, tally)
            else:
                engine.close()
                engine, known = launch(), 0
            tally.run_s.append(time.monotonic() - begin)
            recovered = engine.recoveries[known:]
            tally.recoveries += len(recovered)
            for recovery in recovered:
                if recovery.total_s > max(tally.recovery_s, default=0.0):
                    tally.slowest = str(recovery)
                tally.recovery_s.append(recovery.total_s)
            progress(
                f"run {tally.runs} of {runs}: {tally.run_s[-1]:.1f} s, "
                f"{len(drawn.asks)} generations, {len(drawn.faults)} faults, "
                f"{len(recovered)} recoveries, {len(tally.complaints)} complaints so far"
            )
    finally:
        engine.close()
    for what, count in footprint.settled(nothing).items():
        tally.complain("leaks", f"{what}: {count} more than before the engine", count)
    return tally


def _stream(engine: Engine, case: int, tokens: int, seed: int) -> Generator[int, None, None]:
    prompt, sampling = CASES[case]
    asked = engine.generate(
        prompt, max_tokens=tokens, seed=seed + case, ignore_eos=True, **sampling
    )
    with contextlib.closing(asked) as stream:
        for token in stream:
            yield token.id


class _Disturbed:
    """One run: a thread for each generation, whose tokens set the faults off."""

    def __init__(self, engine: Engine, drawn: Drawn, seed: int, tally: Tally) -> None:
        self._engine, self._drawn, self._seed, self._tally = engine, drawn, seed, tally
        self._left = list(drawn.faults)
        self._got: list[list[int]] = [[] for _ in drawn.asks]
        self._total = self._done = 0
        self._changed = threading.Condition()
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(len(drawn.asks))
        ]

    def check(self, expected: Sequence[Sequence[int]]) -> bool:
        """Run it and count what goes wrong; False where the engine hangs."""
        deadline, tally = time.monotonic() + HANG_S, self._tally
        for thread in self._threads:
            thread.start()
        at = 0
        while at < len(self._threads):  # replans join them
            self._threads[at].join(max(0.0, deadline - time.monotonic()))
            at += 1
        faults = self._drawn.faults
        if any(thread.is_alive() for thread in self._threads):
            tally.complain("hangs", f"hung for {HANG_S:.0f} s after {self._total} tokens, {faults}")
            return False
        for failure in self._failures:
            tally.complain("errors", f"{type(failure).__name__}: {failure} after {faults}")
        for ask, got in zip(self._drawn.asks, self._got, strict=True):
            wanted = expected[ask.case][: ask.taken]
            if got != wanted[: len(got)] or (not self._failures and len(got) != len(wanted)):
                tally.complain(
                    "wrong_tokens",
                    f"{len(got)} tokens, not those expected, of {ask} after {faults}",
                )
        return True

    def _run(self, number: int) -> None:
        ask, got = self._drawn.asks[number], self._got[number]
        first = sum(ask.at < 0 for ask in self._drawn.asks)
        with self._changed:
            self._changed.wait_for(lambda: self._total > ask.at or self._done >= first)
        try:
            self._strike_due()
            with contextlib.closing(
                _stream(self._engine, ask.case, ask.tokens, self._seed)
            ) as stream:
                for id_ in stream:
                    got.append(id_)
                    with self._changed:
                        self._total += 1
                        self._changed.notify_all()
                    self._strike_due()
                    if len(got) == ask.taken:
                        break
        except BaseException as error:  # noqa: BLE001 - counted, whatever it is
            self._failures.append(error)
        finally:
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def _strike_due(self) -> None:
        with self._changed:
            while self._left and self._total > self._left[0].at:
                fault = self._left.pop(0)
                if fault.actor:
                    self._tally.faults += strike(self._engine, fault)
                else:
                    thread = threading.Thread(target=self._replan, args=(fault,), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _replan(self, fault: Fault) -> None:
        try:
            self._engine.replan(policy=fault.op)
            self._tally.replans += 1
        except (HotcoldError, RayError):  # an actor was lost meanwhile; the plan before runs
            return
        except BaseException as error:  # noqa: BLE001 - counted, whatever it is
            self._failures.append(error)


def _check_whole(engine: Engine, whole: Counter[str], tally: Tally) -> None:
    deadline = time.monotonic() + WHOLE_S
    while not engine.is_whole:
        if time.monotonic() > deadline:
            tally.complain("errors", "an actor was not replaced")
            return
        time.sleep(0.02)
    for what, count in footprint.settled(whole, WHOLE_S, slack_mib=64).items():
        tally.complain("leaks", f"{what}: {count} more than before", count)
