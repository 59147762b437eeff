"""Chaos: kill and stop actors at random steps, and check that the tokens do not change.

Called by `hotcold chaos`. A run is one generation, all on one engine; its faults are drawn from the
seed before it begins. Most strike inside a step (native/loop/fault.c raises the signal in its own
process), so that the other actors wait for the flag which that step would have set. The rest strike
from outside at any moment. After every run all actors must be alive and hold what they held
before.
"""

import contextlib
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hotcold.actors.cluster import footprint
from hotcold.actors.cluster.processes import is_gone, is_stopped
from hotcold.actors.engine.engine import Engine
from hotcold.native.abi import names
from hotcold.runtime.plan.program import Program

OPS = {  # of the smallest engine
    "gpu": ("embed", "attention", "hot", "merge", "head"),
    "cpu": ("cold",),
    "predictor": ("predict",),
}
PROMPTS = (
    "Once upon a time",
    "The old man looked at the sea",
    "There was a little girl who lived near the forest. " * 5,  # several passes
)
TOKENS = 240  # a quarter of a second on two cores, so that early faults strike midway
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)
STRIKES = (1, 1, 1, 2, 2, 3)
FROM_OUTSIDE = 0.25  # share of the faults
HANG_S = 90.0
WHOLE_S = 15.0


@dataclass(frozen=True)
class Fault:
    """One fault.

    It strikes once more than `at` tokens have come, -1: in the prompt; in a step of `op`, None:
    from outside, at once.
    """

    at: int
    actor: str
    op: str | None
    number: int


@dataclass
class Tally:
    """What happened.

    Attributes:
        runs, recoveries, hangs, errors, wrong_tokens, leaks: counts.
        faults: those sent; some meet an actor that is already gone.
        recovery_s: seconds of every recovery.
        run_s: seconds of every run.
        slowest: the longest recovery by phase.
        complaints: what went wrong, in words.
    """

    runs: int = 0
    faults: int = 0
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
        expected = {prompt: list(_stream(engine, prompt, seed)) for prompt in PROMPTS}
        whole = footprint.take()
        for _ in range(runs):
            tally.runs += 1
            known, begin = len(engine.recoveries), time.monotonic()
            prompt, faults = rng.choice(PROMPTS), draw(rng, ops)
            if _disturbed(engine, prompt, seed, faults, expected[prompt], tally):
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
                f"run {tally.runs} of {runs}: {tally.run_s[-1]:.1f} s, {len(faults)} faults, "
                f"{len(recovered)} recoveries, {len(tally.complaints)} complaints so far"
            )
    finally:
        engine.close()
    for what, count in footprint.settled(nothing).items():
        tally.complain("leaks", f"{what}: {count} more than before the engine", count)
    return tally


def ops_of(programs: Mapping[str, Program]) -> dict[str, list[str]]:
    """By actor, the operations that faults may strike in."""
    return {
        actor: list(dict.fromkeys(names.OPS[int(op)] for op in steps["op"]))
        for actor, steps in programs.items()
    }


def draw(rng: random.Random, ops: Mapping[str, Sequence[str]] = OPS) -> list[Fault]:
    """The faults of one run, in the order they strike; ops: by actor."""
    moments = sorted(rng.sample(range(-1, TOKENS // 2), rng.choice(STRIKES)))
    return [_draw_one(rng, at, ops) for at in moments]


def _draw_one(rng: random.Random, at: int, ops: Mapping[str, Sequence[str]]) -> Fault:
    actor = rng.choice(list(ops))
    op = None if rng.random() < FROM_OUTSIDE or not ops[actor] else rng.choice(ops[actor])
    return Fault(at, actor, op, int(rng.choice(SIGNALS)))


def _stream(engine: Engine, prompt: str, seed: int) -> Any:
    stream = engine.generate(
        prompt, max_tokens=TOKENS, temperature=0.9, top_p=0.95, seed=seed, ignore_eos=True
    )
    return (token.id for token in stream)


def _disturbed(
    engine: Engine,
    prompt: str,
    seed: int,
    faults: list[Fault],
    expected: list[int],
    tally: Tally,
) -> bool:
    got: list[int] = []
    failures: list[BaseException] = []

    def work() -> None:
        left = list(faults)

        def strike_due() -> None:
            while left and len(got) > left[0].at:
                tally.faults += strike(engine, left.pop(0))

        try:
            strike_due()
            for id_ in _stream(engine, prompt, seed):
                got.append(id_)
                strike_due()
        except BaseException as error:  # noqa: BLE001 - counted, whatever it is
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANG_S)
    if thread.is_alive():
        tally.complain("hangs", f"hung for {HANG_S:.0f} s after {len(got)} tokens and {faults}")
        return False
    for failure in failures:
        tally.complain("errors", f"{type(failure).__name__}: {failure} after {faults}")
    if got != expected[: len(got)] or (not failures and len(got) != len(expected)):
        tally.complain("wrong_tokens", f"{len(got)} tokens, not those expected, after {faults}")
    return True


def strike(engine: Engine, fault: Fault) -> bool:
    """Send a fault; False where its victim was not there to take it.

    Where the GPU executor predicts in its own graph, the predictor has no steps to strike in.
    """
    pid = engine.pids[fault.actor]
    if is_gone(pid) or is_stopped(pid):
        return False
    if fault.op is not None and fault.actor not in engine.standing_by:
        # Not waited for: an actor may die before it answers.
        engine.actors[fault.actor].arm.remote(fault.op, 0, fault.number)
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, fault.number)
    return True


def _check_whole(engine: Engine, whole: Counter[str], tally: Tally) -> None:
    deadline = time.monotonic() + WHOLE_S
    while not engine.is_whole:
        if time.monotonic() > deadline:
            tally.complain("errors", "an actor was not replaced")
            return
        time.sleep(0.02)
    for what, count in footprint.settled(whole, WHOLE_S, slack_mib=64).items():
        tally.complain("leaks", f"{what}: {count} more than before", count)
