"""Room for engines in a Ray of two CPUs: for several, and what is said where there is none."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from hotcold.actors import Engine
from hotcold.native.errors import LaunchError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@contextmanager
def held(cpus: float) -> Iterator[None]:
    """CPUs that something else of the cluster holds."""
    if cpus <= 0:
        yield
        return
    group = placement_group([{"CPU": cpus}], name="hog")
    try:
        assert group.wait(10)
        yield
    finally:
        remove_placement_group(group)


def all_cpus() -> float:
    return float(ray.cluster_resources()["CPU"])


@pytest.mark.parametrize("threads", [None, 1])
def test_two_engines_at_once_on_two_cpus(tiny_model: Path, threads: int | None) -> None:
    options = {"model": tiny_model, "threads": threads}
    with (
        held(all_cpus() - 2),
        Engine.launch(**options) as first,
        Engine.launch(**options) as second,
    ):
        streams = [e.generate([1, 2, 3], max_tokens=20, ignore_eos=True) for e in (first, second)]
        pairs = list(zip(*streams, strict=True))
        assert len(pairs) == 20 and all(one.id == other.id for one, other in pairs)
        assert "threads on" in second.stats().processors


def test_no_room_is_said_at_once_and_who_has_it(tiny_model: Path) -> None:
    with Engine.launch(tiny_model, name="first"), held(all_cpus() - 0.5):
        begin = time.monotonic()
        with pytest.raises(LaunchError) as caught:
            Engine.launch(tiny_model)
        assert time.monotonic() - begin < 3
    text = str(caught.value)
    assert "they need 0.3 CPUs of this node, 0.2 are free" in text
    assert f"hog {all_cpus() - 0.5:g}" in text and "hotcold-first-" in text and "0.3" in text
    Engine.launch(tiny_model).close()  # there is room again
