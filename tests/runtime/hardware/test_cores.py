"""Threads and cores: whose share is what, and when threads are pinned."""

from pathlib import Path

import pytest

from hotcold.runtime.hardware.cores import by_node, divide_cores
from hotcold.runtime.limits import Processors
from hotcold.runtime.topology import Topology

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


def test_cpu_executors_share_the_cores() -> None:
    shares = divide_cores(None, None, FOUR, topology=Topology(1, 2))
    assert [share.threads for share in shares.values()] == [4, 2, 2, 4]
    assert shares["cpu"].cores == (3, 4) and shares["cpu1"].cores == (6, 7)
    shares = divide_cores(1, True, FOUR, topology=Topology(3, 3))
    assert len({shares[actor].cores for actor in ("cpu", "cpu1", "cpu2")}) == 3
    assert not set(shares["gpu1"].cores or ()) & set(shares["gpu2"].cores or ())
    shares = divide_cores(None, None, Processors((5,), None), topology=Topology(1, 3))
    assert {share.threads for share in shares.values()} == {1}


def test_parts_follow_the_nodes(tmp_path: Path) -> None:
    for node, cores in ((0, "0,2,4-5"), (1, "1,3,6-7")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cores}\n")
    eight = Processors(tuple(range(8)), None)
    assert by_node(eight.cores, tmp_path) == (0, 2, 4, 5, 1, 3, 6, 7)
    for cpus in (2, 4):
        shares = divide_cores(None, True, eight, topology=Topology(1, cpus), root=tmp_path)
        parts = [shares[f"cpu{at or ''}"].cores for at in range(cpus)]
        assert sorted(core for part in parts for core in part or ()) == list(range(8))
        for part in parts:
            assert set(part or ()) <= {0, 2, 4, 5} or set(part or ()) <= {1, 3, 6, 7}
