"""Engines of several GPU and CPU executors: tokens, losses, other drivers, both transports."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotcold.actors import Engine
from hotcold.actors.bench import chaos
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.tracing.timeline import passes, perfetto

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPT = [1, 50, 60, 70]
SEVERAL = {"gpu_executors": 2, "cpu_executors": 2, "threads": 1}
ACTORS = ["gpu", "gpu1", "cpu", "cpu1", "predictor"]


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Iterator[list[int]]:
    """Tokens of three actors, without a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTCOLD_CUDA", "off")
        prepared = prepare_model(EngineConfig(model=tiny_model, threads=1))
        with LocalSession(deploy(prepared, solve(prepared))) as session:
            drawn = session.sample(PROMPT, Sampling(60, ignore_eos=True))
            found = [id_ for id_, _ in drawn]
        yield found


def generated(engine: Engine, victim: str = "") -> list[int]:
    found = []
    for token in engine.generate(PROMPT, max_tokens=60, ignore_eos=True):
        if victim and not found:
            os.kill(engine.pids[victim], signal.SIGKILL)
        found.append(token.id)
    return found


def test_losses_of_any_executor_and_other_drivers(tiny_model: Path, expected: list[int]) -> None:
    with Engine.launch(model=tiny_model, sequences=2, **SEVERAL) as engine:
        assert list(engine.pids) == ACTORS and generated(engine) == expected
        for victim in ("gpu1", "cpu1"):
            assert generated(engine, victim) == expected
            assert [r.actor for r in engine.recoveries][-1] == victim
        connected = Engine.connect(engine.name)
        both = connected.generate_many([PROMPT, PROMPT], max_tokens=60, ignore_eos=True)
        assert [one.token_ids for one in both] == [expected, expected]
        stats = connected.stats()
        assert list(stats.actors) == ACTORS
        assert all(stats.actors[actor].up_down_rows > 0 for actor in ACTORS[:-1])
        assert 0 < stats.gpu_neuron_load < 1 and list(stats.bytes_by_device)[3] == "cpu1"
        found = passes(engine.spans())
        trace = perfetto(found, engine.programs, {})["traceEvents"]
        named = {event["args"]["name"] for event in trace if event["name"] == "process_name"}
        assert {"GPU executor 1", "CPU executor 1"} <= named
        arrows = {(e["name"], e["pid"]) for e in trace if e["ph"] == "s"}
        assert {("y", 2), ("y", 3), ("y", 4)} <= arrows
        assert chaos.ops_of(engine.programs)["gpu1"] == ["hot"]
        engine.replan("random")
        assert generated(engine) == expected


def test_the_ray_transport(tiny_model: Path, expected: list[int]) -> None:
    with Engine.launch(model=tiny_model, transport="ray", **SEVERAL) as engine:
        tokens = engine.generate(PROMPT, max_tokens=12, ignore_eos=True)
        assert [token.id for token in tokens] == expected[:12]
        assert list(engine.stats().actors) == ACTORS
