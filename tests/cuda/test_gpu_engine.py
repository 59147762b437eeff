"""The three actors with a GPU: killed in the middle of a token; what is left, and what goes on."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.gpu_engine import ERROR_S, ids, launch, nothing_left_on_the_gpu, park, within

from hotcold.actors import ActorLostError
from hotcold.actors.processes import is_gone

pytestmark = [pytest.mark.gpu, pytest.mark.ray]


@pytest.fixture(scope="module")
def one_ray(plugin: Any) -> Iterator[None]:
    from hotcold.actors.cluster import joined

    with joined(None):
        yield


@pytest.fixture
def nothing_left(one_ray: None) -> Iterator[None]:
    with nothing_left_on_the_gpu():
        yield


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
