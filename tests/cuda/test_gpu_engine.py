"""The three actors with a GPU: killed in the middle of a token; what is left, and what goes on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.gpu_engine import ERROR_S, ids, launch, nothing_left_on_the_gpu, park, within

from hotcold.actors import ActorLostError, Engine
from hotcold.actors.cluster.processes import is_gone
from hotcold.native.gpu import nvml
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.alone]


@pytest.fixture
def nothing_left(plugin: Any, one_ray: str) -> Iterator[None]:
    with nothing_left_on_the_gpu():
        yield


@contextmanager
def watched() -> Iterator[list[int]]:
    """Bytes in use on the device beyond those before: the most of many looks, at the end."""
    before, over, peak = nvml.used_bytes() or 0, threading.Event(), [0]

    def watch() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], (nvml.used_bytes() or 0) - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["cpu", "gpu"])
def test_the_budget_is_kept_by_all_processes_over_a_replan_and_a_loss(
    nothing_left: None, victim: str
) -> None:
    """Contexts of actors that come and go included: what is promised is the device's, not one's."""
    import ray

    roomy = prepare_model(EngineConfig(vram="2GiB", predictor="low-rank")).gpu
    assert roomy is not None
    vram = roomy.reserve_bytes + (36 << 20)  # modules and half of the neurons, about
    with watched() as peak:
        with Engine.launch(vram=vram, policy="greedy", predictor="low-rank", restarts=1) as engine:
            ids(engine)
            greedy = engine.stats()
            assert 0 < greedy.gpu_neuron_load < 1
            engine.replan(policy="random")
            assert engine.stats().plan_hash != greedy.plan_hash
            undisturbed, passes = ids(engine), engine.stats().actors["gpu"].passes
            op = {"cpu": "cold", "gpu": "merge"}[victim]
            ray.get(engine.actors[victim].arm.remote(op, passes + 9, int(signal.SIGKILL)))
            assert ids(engine) == undisturbed
            assert len(engine.recoveries) == 1
    assert roomy.context_bytes // 2 < peak[0] <= vram, f"{peak[0]} of {vram} bytes"


@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
@pytest.mark.parametrize(("actor", "op"), [("cpu", "cold"), ("gpu", "merge")])
def test_killed_in_a_pass(nothing_left: None, predictor: str, actor: str, op: str) -> None:
    import ray

    with launch(predictor, restarts=1) as engine:
        undisturbed = ids(engine)
        passes = engine.stats().actors["gpu"].passes
        ray.get(engine.actors[actor].arm.remote(op, passes + 9, int(signal.SIGKILL)))
        assert ids(engine) == undisturbed
        (recovery,) = engine.recoveries
        assert (recovery.actor, recovery.cause) == (actor, "died")
        assert ids(engine) == undisturbed


PARKED = {  # predictor and schedule: who stops and so parks the others, who is killed
    ("exact", "paper"): [("cpu", "cpu"), ("cpu", "predictor"), ("cpu", "gpu")],
    ("low-rank", "selective"): [
        ("cpu", "cpu"),
        ("cpu", "predictor"),
        ("cpu", "gpu"),
        ("gpu", "gpu"),
    ],
    ("low-rank", "lookahead"): [("cpu", "cpu"), ("cpu", "predictor"), ("cpu", "gpu")],
}


@pytest.mark.parametrize(("predictor", "schedule"), PARKED)
def test_killed_with_the_graph_parked_on_a_flag(
    nothing_left: None, predictor: str, schedule: str
) -> None:
    with launch(predictor, restarts=0, schedule=schedule) as engine:
        undisturbed, pids = ids(engine), set()
        for stopped, victim in PARKED[predictor, schedule]:
            pids |= kill_while_parked(engine, stopped, victim, undisturbed)
        pids |= set(engine.pids.values())
    assert all(is_gone(pid) for pid in pids)
    with launch(predictor, restarts=0, schedule=schedule) as engine:
        assert ids(engine) == undisturbed


def kill_while_parked(
    engine: Engine, stopped: str, victim: str, undisturbed: list[int]
) -> set[int]:
    """One death: a typed error in time, then the actors rebuilt and the same tokens.

    Returns:
        The processes there were before.
    """
    past, pids = len(engine.recoveries), engine.pids
    consumer, errors = park(engine, stopped, {"cpu": "cold", "gpu": "merge"}[stopped])
    began = time.monotonic()
    os.kill(pids[victim], signal.SIGKILL)
    consumer.join(20)
    took = time.monotonic() - began
    if stopped != victim:
        os.kill(pids[stopped], signal.SIGCONT)
    (error,) = errors
    assert isinstance(error, ActorLostError)
    assert error.actor == victim
    assert took < ERROR_S, f"the error came after {took:.2f} s"
    assert error.token_ids == undisturbed[: len(error.token_ids)]
    within(30, lambda: len(engine.recoveries) == past + 1, "the actors were not rebuilt")
    assert ids(engine) == undisturbed  # so the graph of the survivor was drained, too
    return set(pids.values())
