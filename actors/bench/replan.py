"""bench replan: what a new plan costs the tokens that run meanwhile.

A plan differs from the one before in a share of all neurons, as many to each side. In a round the
engine generates undisturbed, then with a replan after a quarter of the tokens, and then undisturbed
with the new plan; a last engine is launched with it. All generations must have the same tokens, but
for what another order of sums may change in a draw.
"""

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.actors.engine.engine import Engine
from hotcold.runtime.plan.problem import Placement, Problem

PROMPT = (3, 5, 9, 12)
Launch = Callable[..., AbstractContextManager[Engine]]


@dataclass(frozen=True)
class Swapped:
    """The hottest neurons on the GPU executors, but for a share of all that is swapped."""

    share: float

    def place(self, problem: Problem) -> Placement:
        """In every layer as many of each side, so that all devices keep their bytes."""
        placed = problem.fill(problem.activations_LN / problem.neuron_bytes_L[:, None])
        device_LN, rng = placed.device_LN.copy(), np.random.default_rng(0)
        host = len(problem.devices) - 1
        for device_N in device_LN:
            hot, cold = np.flatnonzero(device_N != host), np.flatnonzero(device_N == host)
            count = min(len(hot), len(cold), round(self.share * len(device_N) / 2))
            out, in_ = (rng.choice(ids, count, replace=False) for ids in (hot, cold))
            device_N[out], device_N[in_] = host, device_N[out].copy()
        return replace(placed, device_LN=device_LN)


@dataclass(frozen=True)
class Run:
    """A generation: its ids, and when each was drawn, nanoseconds."""

    ids: list[int]
    time_ns_P: NDArray[np.int64]

    @property
    def longest_gap_ms(self) -> float:
        """Between two tokens."""
        return float(np.diff(self.time_ns_P).max()) / 1e6

    @property
    def tokens_per_s(self) -> float:
        """From the first token to the last."""
        return 1e9 * (len(self.ids) - 1) / float(self.time_ns_P[-1] - self.time_ns_P[0])


def generate(engine: Engine, count: int, middle: Callable[[], None] | None = None) -> Run:
    """Some greedy tokens; `middle` is called beside them after a quarter."""
    ids, times = [], []
    beside = threading.Thread(target=middle) if middle is not None else None
    for token in engine.generate(PROMPT, max_tokens=count, ignore_eos=True):
        ids.append(token.id)
        times.append(token.time_ns)
        if beside is not None and len(ids) == count // 4:
            beside.start()
    if beside is not None:
        beside.join()
    return Run(ids, np.array(times, np.int64))


def measure(
    launch: Launch, share: float, rate: str, new_tokens: int, rounds: int
) -> dict[str, Any]:
    """Medians over the rounds; the longest gap is that of all rounds."""
    plain, swapped = Swapped(0.0), Swapped(share)
    kept: dict[str, list[float]] = {"before": [], "during": [], "after": [], "fresh": []}
    gaps: dict[str, list[float]] = {"undisturbed": [], "replan": []}
    seconds: list[float] = []
    same = True
    with launch(policy=plain) as engine:
        generate(engine, new_tokens // 4)
        moved = engine.stats()
        for _ in range(rounds):
            before = generate(engine, new_tokens)

            def change() -> None:
                begin = time.monotonic()
                engine.replan(policy=swapped, rate=rate)
                seconds.append(time.monotonic() - begin)

            during = generate(engine, new_tokens, change)
            after = generate(engine, new_tokens)
            now = engine.stats()
            for name, run in (("before", before), ("during", during), ("after", after)):
                kept[name].append(run.tokens_per_s)
            gaps["undisturbed"] += [before.longest_gap_ms, after.longest_gap_ms]
            gaps["replan"].append(during.longest_gap_ms)
            same = same and before.ids == during.ids == after.ids
            neurons = now.neurons_moved - moved.neurons_moved
            versions = now.owners_version - moved.owners_version
            engine.replan(policy=plain, rate=rate)
            moved = engine.stats()
    with launch(policy=swapped) as engine:
        generate(engine, new_tokens // 4)
        for _ in range(rounds):
            run = generate(engine, new_tokens)
            kept["fresh"].append(run.tokens_per_s)
            same = same and run.ids == before.ids
    return {
        "neurons": neurons,
        "versions": versions,
        "replan_s": statistics.median(seconds),
        "longest_gap_ms": max(gaps["replan"]),
        "longest_gap_undisturbed_ms": max(gaps["undisturbed"]),
        "tokens_per_s": {name: statistics.median(rates) for name, rates in kept.items()},
        "same_tokens": same,
        "rounds": rounds,
    }
