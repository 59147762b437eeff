"""A small explicit-state model checker: every interleaving of a few actors, breadth first.

A model gives its first state and, for every state, the steps that may be taken next; states are
hashable. The trace of a violation is a shortest one. Checked of every model: a step may raise
`Violation`; where no step is left, the state must be an end; and no run goes on for ever.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple, Protocol


class Violation(Exception):
    """A step that no right protocol takes."""


class Model(Protocol):
    def start(self) -> Hashable: ...

    def steps(self, state: Hashable) -> Iterable[tuple[str, Hashable]]:
        """(what happens, state after it) for everything that may happen next."""

    def is_end(self, state: Hashable) -> bool:
        """May a run stop here for good?"""


class Result(NamedTuple):
    states: int
    steps: int
    violation: str | None
    trace: list[str]


def explore(model: Model, limit: int = 1_000_000) -> Result:
    """Visit every state; end at the first violation."""
    start = model.start()
    numbers = {start: 0}
    parents: list[tuple[int, str]] = [(-1, "")]
    edges: list[list[int]] = []
    frontier = [start]
    taken = 0
    while frontier:
        following = []
        for state in frontier:
            number = numbers[state]
            try:
                steps = list(model.steps(state))
            except Violation as error:
                return Result(len(numbers), taken, str(error), _trace(parents, number))
            if not steps and not model.is_end(state):
                return Result(len(numbers), taken, "deadlock", _trace(parents, number))
            targets = []
            for label, after in steps:
                target = numbers.setdefault(after, len(numbers))
                if target == len(parents):
                    parents.append((number, label))
                    following.append(after)
                targets.append(target)
            edges.append(targets)  # states are taken in the order of their numbers
            taken += len(targets)
        if len(numbers) > limit:
            raise RuntimeError(f"more than {limit} states: make the model smaller")
        frontier = following
    endless = "a run that never ends" if _has_cycle(edges) else None
    return Result(len(numbers), taken, endless, [])


def _trace(parents: list[tuple[int, str]], number: int) -> list[str]:
    labels = []
    while number > 0:
        number, label = parents[number]
        labels.append(label)
    return labels[::-1]


def _has_cycle(edges: list[list[int]]) -> bool:
    """Take away states all of whose steps lead to states taken away; what is left is a cycle."""
    before: list[list[int]] = [[] for _ in edges]
    for number, targets in enumerate(edges):
        for target in targets:
            before[target].append(number)
    left = [len(targets) for targets in edges]
    done = [number for number, count in enumerate(left) if count == 0]
    for number in done:  # grows while it is walked
        for source in before[number]:
            left[source] -= 1
            if left[source] == 0:
                done.append(source)
    return len(done) < len(edges)
