"""Engines with a GPU for the tests in tests/cuda: launched, parked on a flag, looked at after."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.actors import Engine
from hotcold.actors.cluster.processes import is_stopped
from hotcold.native.gpu import nvml

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


def launch(predictor: str, restarts: int, schedule: str = "selective", **more: Any) -> Engine:
    options: dict[str, Any] = {"policy": Half(), "vram": "2GiB", "predictor": predictor, **more}
    return Engine.launch(restarts=restarts, schedule=schedule, **options)


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


@contextmanager
def nothing_left_on_the_gpu() -> Iterator[None]:
    """No memory, no kernel and no daemon that was not there before."""
    before, running = nvml.used_bytes() or 0, daemons()
    yield
    within(
        FREED_S,
        lambda: (nvml.used_bytes() or 0) <= before + (8 << 20),
        "memory left on the GPU",
    )
    within(FREED_S, lambda: nvml.busy_percent() == 0, "a kernel still runs")
    within(FREED_S, lambda: daemons() == running, "a daemon is left")


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
