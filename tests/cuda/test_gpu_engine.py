"""The three actors with a GPU: one killed in the middle of a token, the generation goes on."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hotcold.actors import Engine
from hotcold.native import nvml

pytestmark = [pytest.mark.gpu, pytest.mark.ray]
SAMPLING: dict[str, Any] = {"max_tokens": 60, "temperature": 0.8, "seed": 5, "ignore_eos": True}
FREED_S = 5.0


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


def launch(predictor: str) -> Engine:
    return Engine.launch(policy=Half(), vram="2GiB", predictor=predictor)


def ids(engine: Engine) -> list[int]:
    return [token.id for token in engine.generate("Once upon a time", **SAMPLING)]


@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
@pytest.mark.parametrize(("actor", "op"), [("cpu", "cold"), ("gpu", "merge")])
def test_killed_in_a_pass(one_ray: None, predictor: str, actor: str, op: str) -> None:
    import ray

    before = nvml.used_bytes()
    with launch(predictor) as engine:
        undisturbed = ids(engine)
        passes = engine.stats().actors["gpu"].passes
        ray.get(engine.actors[actor].arm.remote(op, passes + 9, int(signal.SIGKILL)))
        began = time.monotonic()
        assert ids(engine) == undisturbed
        took = time.monotonic() - began
        (recovery,) = engine.recoveries
        assert (recovery.actor, recovery.cause) == (actor, "died")
        assert ids(engine) == undisturbed
    assert took < 60
    deadline = time.monotonic() + FREED_S
    while (used := nvml.used_bytes() or 0) > (before or 0) + (8 << 20):
        assert time.monotonic() < deadline, f"{(used - (before or 0)) >> 20} MiB left on the GPU"
        time.sleep(0.1)
