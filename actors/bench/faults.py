"""What happens in a run of chaos, drawn from a seed: generations, and faults that strike them.

Most faults strike inside a step (native/loop/fault.c raises the signal in its own process), so that
the other actors wait for the flag which that step would have set. Some strike from outside at any
moment, and some are new plans.
"""

import contextlib
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hotcold.actors.cluster.processes import is_gone, is_stopped
from hotcold.actors.engine.engine import Engine

OPS = {
    "gpu": ("embed", "attention", "hot", "merge", "head"),
    "cpu": ("cold",),
    "predictor": ("predict",),
}
PROMPTS = (
    "Once upon a time",
    "The old man looked at the sea",
    "There was a little girl who lived near the forest. " * 5,  # several passes
)
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 0.0},
    {"temperature": 1.2, "top_k": 40},
)
CASES = [(prompt, sampling) for prompt in PROMPTS for sampling in SAMPLINGS]
TOKENS = 240  # a quarter of a second on two cores, so that early faults strike midway
POLICIES = ("random", "greedy")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)
STRIKES = (1, 1, 1, 2, 2, 3)
FROM_OUTSIDE, REPLANS = 0.25, 0.15  # shares of the faults
LEAVES = 0.2  # share of the generations that are left early, where there are several


@dataclass(frozen=True)
class Fault:
    """One fault.

    It strikes once more than `at` tokens have come, -1: in the prompt; in a step of `op`, None:
    from outside, at once. Without an actor it is a new plan, by the policy `op`.
    """

    at: int
    actor: str
    op: str | None
    number: int


@dataclass(frozen=True)
class Ask:
    """One generation: a case of CASES, the tokens that are taken of those asked for.

    It begins once more than `at` tokens of all have come, or when the others are done.
    """

    at: int
    case: int
    tokens: int
    taken: int


@dataclass(frozen=True)
class Drawn:
    """What happens in a run."""

    asks: list[Ask]
    faults: list[Fault]


def draw(rng: random.Random, sequences: int, actors: Sequence[str]) -> Drawn:
    """What happens in one run, in the order it does."""
    asks = [_draw_ask(rng, -1, sequences) for _ in range(rng.randint(1, sequences))]
    total = sum(ask.taken for ask in asks)
    joining = sorted(rng.randrange(total) for _ in range(rng.randint(0, sequences // 2)))
    asks += [_draw_ask(rng, at, sequences) for at in joining]
    moments = sorted(rng.sample(range(-1, max(*STRIKES, total // 2)), rng.choice(STRIKES)))
    return Drawn(asks, [_draw_fault(rng, at, actors) for at in moments])


def _draw_ask(rng: random.Random, at: int, sequences: int) -> Ask:
    tokens = TOKENS if sequences == 1 else rng.randint(TOKENS // 4, TOKENS)
    leaves = sequences > 1 and rng.random() < LEAVES
    return Ask(at, rng.randrange(len(CASES)), tokens, rng.randint(1, tokens) if leaves else tokens)


def _draw_fault(rng: random.Random, at: int, actors: Sequence[str]) -> Fault:
    if rng.random() < REPLANS:
        return Fault(at, "", rng.choice(POLICIES), 0)
    actor = rng.choice(actors)
    ops = OPS.get(actor.rstrip("0123456789"), ())  # of an actor of that kind
    op = None if not ops or rng.random() < FROM_OUTSIDE else rng.choice(ops)
    return Fault(at, actor, op, int(rng.choice(SIGNALS)))


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
