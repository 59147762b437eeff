"""Chaos: kill and stop actors at random steps, and check that nobody can tell from the tokens.

Called by `hotcold chaos`. Every run is one generation on one engine; faults are drawn from the
seed. Faults strike inside a step (native/loop.c raises the signal in its own process), so the peers
are parked on whatever flag that step would have set.
"""

import contextlib
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from hotcold.actors.engine import Engine
from hotcold.actors.processes import is_gone
from hotcold.runtime.errors import ActorLostError

OPS = {
    "gpu": ("embed", "attention", "hot", "merge", "head"),
    "cpu": ("cold",),
    "predictor": ("predict",),
}
PROMPTS = ("Once upon a time", "The old man looked at the sea", "There was a little girl who")
TOKENS = 240  # a quarter of a second on two cores: what is armed early strikes midway
HANG_S = 90.0


@dataclass
class Tally:
    """What happened.

    Attributes:
        runs, recoveries, hangs, leaks, wrong_tokens: counts.
        faults: strikes; some meet an actor that is already gone.
        recovery_s: seconds of every recovery.
    """

    runs: int = 0
    faults: int = 0
    recoveries: int = 0
    hangs: int = 0
    leaks: int = 0
    wrong_tokens: int = 0
    recovery_s: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the median recovery time."""
        data = {**self.__dict__}
        times = data.pop("recovery_s")
        data["recovery_median_s"] = statistics.median(times) if times else None
        data["recovery_max_s"] = max(times, default=None)
        return data


def run(
    launch: Callable[[], Engine],
    runs: int,
    seed: int,
    progress: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Run chaos.

    Args:
        launch: makes an engine; called again after a hang.
        runs: generations to disturb.
        seed: of everything that is random.
        progress: told how far it is.
    """
    rng, tally = random.Random(seed), Tally()
    engine = launch()
    try:
        expected = {prompt: _generate(engine, prompt, seed) for prompt in PROMPTS}
        before = _held()
        for number in range(runs):
            known = len(engine.recoveries)
            if not _one(engine, rng, seed, expected, tally):
                tally.hangs += 1
                engine.close()
                engine = launch()
                known = 0
            tally.runs += 1
            recovered = engine.recoveries[known:]
            tally.recoveries += len(recovered)
            tally.recovery_s += [recovery.total_s for recovery in recovered]
            progress(f"run {number + 1} of {runs}: {tally.faults} faults, {tally.hangs} hangs")
        tally.leaks += max(0, _held() - before)
        pids = [actor.pid for actor in engine.stats().actors.values()]
    finally:
        engine.close()
    tally.leaks += sum(not is_gone(pid) for pid in pids)
    return tally


def _generate(engine: Engine, prompt: str, seed: int) -> list[int]:
    stream = engine.generate(
        prompt, max_tokens=TOKENS, temperature=0.9, top_p=0.95, seed=seed, ignore_eos=True
    )
    return [token.id for token in stream]


def _one(
    engine: Engine,
    rng: random.Random,
    seed: int,
    expected: dict[str, list[int]],
    tally: Tally,
) -> bool:
    """One disturbed generation; False where it hung."""
    prompt = rng.choice(PROMPTS)
    strikes = sorted(rng.sample(range(TOKENS // 2), rng.randint(1, 3)))
    got: list[int] = []

    def work() -> None:
        left = list(strikes)
        stream = engine.generate(
            prompt, max_tokens=TOKENS, temperature=0.9, top_p=0.95, seed=seed, ignore_eos=True
        )
        try:
            for token in stream:
                got.append(token.id)
                if left and len(got) > left[0]:
                    left.pop(0)
                    _strike(engine, rng)
                    tally.faults += 1
        except ActorLostError:
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANG_S)
    if thread.is_alive():
        return False
    tally.wrong_tokens += got != expected[prompt]
    return True


def _strike(engine: Engine, rng: random.Random) -> None:
    """Arm one fault. No answer says nothing: the actor was gone, or died before it replied."""
    actor = rng.choice(list(OPS))
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(engine.actors[actor].arm.remote(rng.choice(OPS[actor]), 0, int(number)), timeout=5)


def _held() -> int:
    """Memory without a name and child processes this driver holds, for leak counts."""
    time.sleep(0.2)
    folder = "/proc/self/fd"
    links = []
    for name in os.listdir(folder):
        try:
            links.append(os.readlink(f"{folder}/{name}"))
        except OSError:
            continue
    return sum("hotcold" in link for link in links)
