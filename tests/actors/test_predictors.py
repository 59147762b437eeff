"""Predictors without matrices on Ray: the same tokens by either transport, and after a loss."""

import signal
from pathlib import Path
from typing import Any

import pytest

from hotcold.actors import Engine
from hotcold.policies.predictor.window import Window
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPT = [7, 9, 11, 7, 20, 33, 4, 5]
KINDS: dict[str, Any] = {"sign": "sign", "window": Window(k=3, probe_every=3)}


def local_ids(model: Path, kind: str, count: int) -> list[int]:
    prepared = prepare_model(EngineConfig(model=model, predictor=KINDS[kind]))
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        return [i for i, _ in local.sample(PROMPT, Sampling(max_tokens=count, ignore_eos=True))]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("transport", ["native", "ray"])
def test_both_transports_make_the_same_tokens(tiny_model: Path, kind: str, transport: str) -> None:
    expected = local_ids(tiny_model, kind, 10)
    with Engine.launch(tiny_model, predictor=KINDS[kind], transport=transport) as engine:
        for _ in range(2):  # the second request must not see the first one's past
            found = [t.id for t in engine.generate(PROMPT, max_tokens=10, ignore_eos=True)]
            assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["predictor", "gpu"])
def test_what_a_window_remembers_is_computed_again_after_a_loss(
    tiny_model: Path, victim: str
) -> None:
    expected = local_ids(tiny_model, "window", 40)
    with Engine.launch(tiny_model, predictor=KINDS["window"], restarts=1) as engine:
        op = {"predictor": "predict", "gpu": "hot"}[victim]
        import ray

        ray.get(engine.actors[victim].arm.remote(op, 15, signal.SIGKILL))
        found = [t.id for t in engine.generate(PROMPT, max_tokens=40, ignore_eos=True)]
        assert found == expected
        assert [r.actor for r in engine.recoveries] == [victim]
