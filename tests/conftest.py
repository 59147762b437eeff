"""What tests share: built kernels, a cache and a Ray of their own, marks, and the leak check."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    try:
        built = importlib.util.find_spec("hotcold.native._kernels") is not None
    except ImportError:
        built = False
    if not built:
        pytest.exit("hotcold's C kernels are not built; run: pip install -e .", returncode=2)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // workers
    if workers > 1 and each > 1:  # each has cores of its own, also for the threads it starts
        at = int(os.environ["PYTEST_XDIST_WORKER"][2:])
        os.sched_setaffinity(0, {cores[(at * each + i) % len(cores)] for i in range(each)})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if Path("/dev/nvidiactl").exists():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, this machine has none"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles the tests convert go here, not into the cache of whoever runs them.

    Set in the process's environment, so that child processes and Ray workers have it too.
    """
    folder = tmp_path_factory.mktemp("hotcold-cache")
    os.environ["HOTCOLD_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def one_ray() -> Iterator[str]:
    """One Ray for all tests of a run, as a user's notebook would have; engines join it.

    Returns:
        its address, for drivers in processes of their own.
    """
    import ray

    from hotcold.actors.cluster.ray_cluster import joined

    os.environ["RAY_ADDRESS"] = "local"
    with joined(None):
        yield ray.get_runtime_context().gcs_address
    assert not ray.is_initialized()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts actors if it leaves anything of theirs behind."""
    if request.node.get_closest_marker("ray") is None:
        yield
        return
    from support import leaks

    before = leaks.left_behind()
    yield
    gc.collect()
    leaks.assert_nothing_left(before)
