"""The three actors with a GPU: killed in the middle of a token; what is left, and what goes on."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold.actors import ActorLostError, Engine
from hotcold.actors.processes import is_gone, is_stopped
from hotcold.native import nvml
from hotcold.runtime.config import EngineConfig
from hotcold.runtime.prepare import prepare_model

pytestmark = [pytest.mark.gpu, pytest.mark.ray]
SAMPLING: dict[str, Any] = {"max_tokens": 60, "temperature": 0.8, "seed": 5, "ignore_eos": True}
FREED_S = 5.0
ERROR_S = 2.0  # what is promised


class Half:
    """Every other neuron on the GPU."""

    def place(self, problem: Any) -> Any:
        filled = problem.fill(np.ones(problem.shape))
        device_LN = np.zeros(problem.shape, np.int8)
        device_LN[:, ::2] = 1
        return type(filled)(device_LN, dict.fromkeys(filled.modules, "gpu0"))


@pytest.fixture(scope="module")
def one_ray(plugin: Any) -> Iterator[None]:
    from hotcold.actors.cluster import joined

    with joined(None):
        yield


def launch(predictor: str, restarts: int, schedule: str = "selective") -> Engine:
    return Engine.launch(
        policy=Half(), vram="2GiB", predictor=predictor, restarts=restarts, schedule=schedule
    )


def ids(engine: Engine) -> list[int]:
    return [token.id for token in engine.generate("Once upon a time", **SAMPLING)]


def within(seconds: float, reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def daemons() -> list[int]:
    """Processes of MPS on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text()
            except OSError:
                continue
            if name.startswith("nvidia-cuda-mps"):
                found.append(int(entry.name))
    return found


@pytest.fixture
def nothing_left(one_ray: None) -> Iterator[None]:
    """No memory, no kernel and no daemon that was not there before."""
    before, running = nvml.used_bytes() or 0, daemons()
    yield
    within(
        FREED_S,
        lambda: (nvml.used_bytes() or 0) <= before + (8 << 20),
        f"{((nvml.used_bytes() or 0) - before) >> 20} MiB left on the GPU",
    )
    within(FREED_S, lambda: nvml.busy_percent() == 0, "a kernel still runs")
    assert daemons() == running


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


def park(engine: Engine, actor: str, op: str) -> tuple[threading.Thread, list[BaseException]]:
    """Begin a generation that stands still because an actor stopped at an operation.

    With the CPU executor stopped at its first cold step the graph is parked on the flag of a cold
    sum (one block on the bus, the others on the relay in device memory); with the GPU executor
    stopped before a launch the CPU executor is parked on the flag of x.

    Returns:
        the thread that consumes it, and where its error will be.
    """
    import ray

    stats = engine.stats()
    pid, seen = stats.actors[actor].pid, stats.actors["gpu"].passes
    ray.get(engine.actors[actor].arm.remote(op, seen + 9, int(signal.SIGSTOP)))
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            ids(engine)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test looks at it
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    within(10, lambda: is_stopped(pid), f"the {actor} actor did not stop")
    time.sleep(0.3)  # what can still go on has gone on
    assert consumer.is_alive()
    return consumer, errors


PARKED = [  # predictor, schedule, who stops and so parks the others, who is killed
    ("exact", "paper", "cpu", "cpu"),
    ("low-rank", "lookahead", "cpu", "predictor"),
    ("low-rank", "selective", "cpu", "gpu"),
    ("low-rank", "selective", "gpu", "gpu"),
]
MORE = [
    (predictor, schedule, "cpu", victim)
    for predictor, schedule in (
        ("exact", "paper"),
        ("low-rank", "selective"),
        ("low-rank", "lookahead"),
    )
    for victim in ("cpu", "predictor", "gpu")
]


@pytest.mark.parametrize(
    ("predictor", "schedule", "stopped", "victim"),
    [
        *PARKED,
        *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE if one not in PARKED),
    ],
)
def test_killed_with_the_graph_parked_on_a_flag(
    nothing_left: None, predictor: str, schedule: str, stopped: str, victim: str
) -> None:
    with launch(predictor, restarts=0, schedule=schedule) as engine:
        undisturbed = ids(engine)
        pids = {actor: state.pid for actor, state in engine.stats().actors.items()}
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
        within(30, lambda: len(engine.recoveries) == 1, "the actors were not rebuilt")
        assert ids(engine) == undisturbed  # so the graph of the survivor was drained, too
    assert all(is_gone(pid) for pid in pids.values())
    with launch(predictor, restarts=0, schedule=schedule) as engine:
        assert ids(engine) == undisturbed
