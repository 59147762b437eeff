"""The protocol, checked in every interleaving; and the checker, shown to find planted bugs."""

from collections.abc import Iterator

import pytest
from support.checker import Violation, explore
from support.machine import Machine
from support.protocol import host_passes, stream_passes


class Graph:
    """A model given as {state: next states}; -1 is forbidden."""

    def __init__(self, edges: dict[int, list[int]], ends: tuple[int, ...] = ()) -> None:
        self.edges, self.ends = edges, ends

    def start(self) -> int:
        return 0

    def is_end(self, state: int) -> bool:
        return state in self.ends

    def steps(self, state: int) -> Iterator[tuple[str, int]]:
        for after in self.edges.get(state, ()):
            if after == -1:
                raise Violation("forbidden")
            yield f"to {after}", after


def test_checker_visits_everything_once() -> None:
    result = explore(Graph({0: [1, 2], 1: [3], 2: [3]}, ends=(3,)))
    assert (result.states, result.steps, result.violation) == (4, 4, None)


def test_checker_finds_the_shortest_way_to_a_violation() -> None:
    result = explore(Graph({0: [1, 4], 1: [2], 2: [3], 3: [-1], 4: [3]}))
    assert (result.violation, result.trace) == ("forbidden", ["to 4", "to 3"])


def test_checker_finds_deadlock_and_endless_runs() -> None:
    assert explore(Graph({0: [1]})).violation == "deadlock"
    assert explore(Graph({0: [1], 1: [0, 2]}, ends=(2,))).violation == "a run that never ends"


@pytest.mark.parametrize(
    ("layers", "passes", "cold", "selective"),
    [
        (2, 2, (0, 1), False),
        (2, 3, (0, 1), True),
        (2, 3, (0,), True),  # the barrier is the last layer that has cold neurons
        (3, 1, (0, 2), True),
    ],
)
def test_passes_are_safe(layers: int, passes: int, cold: tuple[int, ...], selective: bool) -> None:
    result = explore(Machine(host_passes(layers, passes, cold, selective=selective)))
    assert result.violation is None, result.trace
    print(f"{result.states} states, {result.steps} steps")
    assert result.states > 10_000


@pytest.mark.parametrize(("layers", "passes"), [(1, 2), (2, 1)])
def test_all_actors_end_whoever_dies_whenever(layers: int, passes: int) -> None:
    programs = host_passes(layers, passes, tuple(range(layers)))
    result = explore(Machine(programs, faults=True))
    assert result.violation is None, result.trace
    print(f"{result.states} states, {result.steps} steps")


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ({"barrier": False}, "cpu reads x0.a of pass 2 in 1"),
        ({"payload_first": False}, "predictor reads x0.a of pass 0 in 1"),
        ({"fence": False}, "deadlock"),
        ({"look_first": True}, "deadlock"),
    ],
)
def test_planted_bugs_are_found(bug: dict[str, bool], found: str) -> None:
    result = explore(Machine(host_passes(2, 2, (0, 1), **bug)))
    print("\n".join(result.trace))
    assert result.violation == found and result.trace
    if found == "deadlock":  # a wake-up was lost: somebody sleeps although the flag is there
        assert any("(asleep)" in step for step in result.trace)


def test_without_the_cap_poison_can_miss_a_sleeper() -> None:
    result = explore(Machine(host_passes(1, 2, (0,)), faults=True, cap=False))
    assert result.violation == "deadlock"
    assert result.trace[-2:] == ["watcher: poison", result.trace[-1]]
    assert result.trace[-1].endswith("(asleep)")


@pytest.mark.parametrize(("layers", "passes"), [(1, 4), (2, 3), (3, 3)])
def test_binary_words_are_safe(layers: int, passes: int) -> None:
    result = explore(Machine(stream_passes(layers, passes)))
    assert result.violation is None, result.trace
    print(f"{result.states} states, {result.steps} steps")


def test_binary_words_drain_after_any_death() -> None:
    result = explore(Machine(stream_passes(2, 3), faults=True))
    assert result.violation is None, result.trace
    print(f"{result.states} states, {result.steps} steps")


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ({"barrier": False}, "cpu reads x0.a of pass 2 in 1"),
        ({"clear_first": False}, "deadlock"),
    ],
)
def test_planted_bugs_of_binary_words_are_found(bug: dict[str, bool], found: str) -> None:
    result = explore(Machine(stream_passes(2, 3, **bug)))
    assert result.violation == found and result.trace


def test_without_a_watchdog_a_stream_waits_for_ever() -> None:
    result = explore(Machine(stream_passes(1, 2, watchdog=False), faults=True))
    assert result.violation == "deadlock"
