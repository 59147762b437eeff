"""The pool that runs several requests at a time, without an engine."""

import threading
import time
from typing import Any

import pytest

from hotcold.actors.engine.many import Tokens, completions
from hotcold.native.errors import KernelError
from hotcold.runtime.text.generation import GenerationStats, Token

STATS = GenerationStats(1, 2, 0.1, 0.1, 0, "eos")


def pieces(request: str) -> Tokens:
    for id_, letter in enumerate(request):
        yield Token(id_, letter, 0.0)
    return STATS


def run(requests: list[Any], at_once: int, tokens: Any) -> Any:
    return completions(requests, at_once, tokens)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "hotcold-request" in thread.name}


@pytest.mark.parametrize("at_once", [1, 2, 5, 40])
def test_each_comes_once(at_once: int) -> None:
    requests = [letter * 3 for letter in "abcdefghijklm"]
    made = list(run(requests, at_once, pieces))
    assert {(one.index, one.text) for one in made} == set(enumerate(requests))
    assert all(one.token_ids == [0, 1, 2] and one.finish_reason == "eos" for one in made)
    assert all(one.stats is STATS for one in made)
    if at_once == 1:
        assert [one.index for one in made] == list(range(13))
    assert threads() == set()
    assert list(run([], at_once, pieces)) == []


def test_so_many_run_at_a_time_and_the_first_done_comes_first() -> None:
    together, running, most = threading.Barrier(3), [0], [0]
    lock = threading.Lock()

    def tokens(seconds: float) -> Tokens:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        together.wait(10)
        time.sleep(seconds)
        yield Token(0, "", 0.0)
        with lock:
            running[0] -= 1
        return STATS

    made = list(run([0.3, 0.01, 0.15] * 2, 3, tokens))
    assert most[0] == 3
    assert [one.index for one in made][:3] == [1, 2, 0]


def test_leaving_early_ends_those_that_run_and_begins_no_other() -> None:
    ended: list[int] = []

    def tokens(request: int) -> Tokens:
        try:
            while request:
                yield Token(0, "", 0.0)
                time.sleep(0.01)
            yield Token(0, "", 0.0)
            return STATS
        finally:
            ended.append(request)

    source = run([0, 1, 2, 3, 4], 3, tokens)
    assert next(source).index == 0
    source.close()
    assert sorted(ended) in ([0, 1, 2], [0, 1, 2, 3])
    assert threads() == set()


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_ends_all(error: BaseException) -> None:
    def tokens(request: int) -> Tokens:
        for _ in range(10_000 if request != 2 else 3):
            yield Token(0, "", 0.0)
            time.sleep(0.01)
        raise error

    with pytest.raises(type(error)):
        list(run([0, 1, 2, 3], 3, tokens))
    assert threads() == set()


def test_a_request_without_figures_is_an_error() -> None:
    def tokens(_: int) -> Tokens:
        yield Token(0, "", 0.0)
        return None

    with pytest.raises(KernelError, match="without its figures"):
        list(run([0], 1, tokens))
