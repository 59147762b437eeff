import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.weights import VARIANTS, forced

from hotcold.native.bindings import kernels
from hotcold.native.errors import BackendError, ConfigError


def threads_of_this_process() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def wait_until_gone(threads: set[str]) -> None:
    deadline = time.monotonic() + 5
    while threads & threads_of_this_process() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not threads & threads_of_this_process()


def test_threads_come_and_go() -> None:
    before = threads_of_this_process()  # among them may be joined ones that the kernel still lists
    with kernels.Pool(4) as pool:
        assert pool.threads == 4
        own = threads_of_this_process() - before
        assert len(own) == 3
    wait_until_gone(own)
    assert pool.threads == 1
    pool.close()


def test_many_short_runs_give_right_results_after_any_pause() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((600, 64)).astype(np.float32)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    expected = kernels.gemv(w, x)
    with kernels.Pool(3) as pool:
        for round_ in range(3000):
            np.testing.assert_array_equal(kernels.gemv(w, x, pool=pool), expected)
            if round_ % 300 == 0:
                time.sleep(0.002)  # long enough for every worker to sleep


def test_an_idle_pool_costs_nothing() -> None:
    with kernels.Pool(3):
        time.sleep(0.05)
        begin = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - begin < 0.1


def test_a_pool_that_may_not_spin_sleeps_at_once() -> None:
    """Between short runs: a worker that spins burns all the time in between, a sleeper none."""
    w, x = np.ones((600, 64), np.float32), np.ones((1, 64), np.float32)
    burnt = {}
    for spins in (True, False):
        with kernels.Pool(3, spins=spins) as pool:
            begin = time.process_time()
            for _ in range(200):
                np.testing.assert_array_equal(kernels.gemv(w, x, pool=pool), np.full((1, 600), 64))
                time.sleep(0.0005)
            burnt[spins] = time.process_time() - begin
    assert burnt[False] < burnt[True]


def test_two_callers_may_share_a_pool() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((2000, 64)).astype(np.float32)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    expected = kernels.gemv(w, x)
    wrong: list[int] = []
    with kernels.Pool(3) as pool:

        def call() -> None:
            for i in range(500):
                if not np.array_equal(kernels.gemv(w, x, pool=pool), expected):
                    wrong.append(i)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


def test_workers_are_pinned() -> None:
    core = min(os.sched_getaffinity(0))
    tasks = set(os.listdir("/proc/self/task"))
    with kernels.Pool(2, cores=[core, core]):
        (worker,) = set(os.listdir("/proc/self/task")) - tasks
        assert os.sched_getaffinity(int(worker)) == {core}


def test_refuses_impossible_pools() -> None:
    with pytest.raises(ConfigError, match="0 threads"):
        kernels.Pool(0)
    with pytest.raises(ConfigError, match="100000 threads"):
        kernels.Pool(100_000)
    with pytest.raises(ConfigError, match="1 cores for 2 threads"):
        kernels.Pool(2, cores=[0])
    missing = max(os.sched_getaffinity(0)) + 1
    with pytest.raises(ConfigError, match=rf"cores \[{missing}\]"):
        kernels.Pool(2, cores=[missing, missing])


def test_variants() -> None:
    assert VARIANTS[-1] == "ref"
    assert kernels.active_cpu_variant() == VARIANTS[0]
    with forced("ref"):
        assert kernels.active_cpu_variant() == "ref"
    assert kernels.active_cpu_variant() == VARIANTS[0]
    with pytest.raises(BackendError, match=r"'avx1024'.*available: .*ref"):
        kernels.force_cpu_variant("avx1024")
    assert kernels.active_cpu_variant() == VARIANTS[0]


def in_child(setting: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOTCOLD_CPU": setting},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_variable_chooses_the_variant() -> None:
    code = "from hotcold.native.bindings import kernels; print(kernels.active_cpu_variant())"
    for setting, expected in (("ref", "ref"), (VARIANTS[0], VARIANTS[0]), ("", VARIANTS[0])):
        child = in_child(setting, code)
        assert child.stdout.strip() == expected, child.stderr


def test_an_unsupported_variable_is_an_error_everywhere() -> None:
    code = """
import numpy as np
from hotcold.native.bindings import kernels
from hotcold.native.errors import BackendError
from hotcold.native.options.sampling import Sampling
one = np.ones((1, 2), np.float32)
calls = [
    kernels.active_cpu_variant,
    lambda: kernels.gemv(one, one),
    lambda: kernels.rmsnorm(one, one[0], 1e-5),
    lambda: kernels.sample(one[0], Sampling()),
    lambda: kernels.ffn(np.ones((1, 6), np.float32), np.zeros(1, np.int32), one),
    lambda: kernels.attention(one[None], one[None, None], one[None, None], np.zeros(1, np.int32)),
]
for call in calls:
    try:
        call()
    except BackendError as error:
        print(error)
"""
    child = in_child("avx1024", code)
    available = ", ".join(VARIANTS)
    line = (
        "CPU variant 'avx1024' asked for by HOTCOLD_CPU is not supported here; "
        f"available: {available}"
    )
    assert child.stdout.splitlines() == [line] * 6, child.stderr
