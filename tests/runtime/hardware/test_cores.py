"""Threads and cores: whose share is what, and when threads are pinned."""

import pytest

from hotcold.runtime.hardware.cores import divide_cores
from hotcold.runtime.limits import Processors

FOUR = Processors((3, 4, 6, 7), None)


def test_each_actor_has_all_cores_and_each_thread_one() -> None:
    for share in divide_cores(None, None, FOUR).values():
        assert share.threads == 4
        assert sorted(share.cores or ()) == [3, 4, 6, 7]


def test_threads_are_pinned_where_each_has_a_core_of_its_own() -> None:
    shares = divide_cores(1, None, FOUR)
    assert [share.threads for share in shares.values()] == [1, 1, 1]
    assert len({core for share in shares.values() for core in share.cores or ()}) == 3
    assert all(share.cores is None for share in divide_cores(2, None, FOUR).values())


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_pinning_follows_the_order(threads: int | None) -> None:
    assert all(share.cores is None for share in divide_cores(threads, False, FOUR).values())
    assert all(share.cores is not None for share in divide_cores(threads, True, FOUR).values())


def test_a_gpu_takes_one_thread_and_leaves_one_core() -> None:
    shares = divide_cores(None, None, FOUR, gpu=True)
    assert {actor: share.threads for actor, share in shares.items()} == {
        "gpu": 1,
        "cpu": 2,
        "predictor": 1,
    }


def test_a_schedule_gives_actors_threads_of_their_own() -> None:
    shares = divide_cores(None, None, FOUR, own={"cpu": 2, "predictor": 1})
    assert [share.threads for share in shares.values()] == [4, 2, 1]
    assert all(share.cores is None for share in shares.values()), "seven threads, four cores"
    shares = divide_cores(1, None, FOUR, own={"cpu": 2})
    assert [share.threads for share in shares.values()] == [1, 2, 1]
    assert len({core for share in shares.values() for core in share.cores or ()}) == 4
