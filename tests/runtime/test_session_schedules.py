"""Built-in schedules, run: what they promise about order, and the right tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.runtime.config import EngineConfig
from hotcold.runtime.deployment import Deployment, deploy, prepare_model, solve
from hotcold.runtime.session import LocalSession


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, TinyLlama(d=35, layers=4, neurons=51, heads=5, kv_heads=1, head_dim=6))
    return folder


@pytest.fixture
def deployed(model: Path) -> Callable[..., Deployment]:
    def make(**options: Any) -> Deployment:
        prepared = prepare_model(EngineConfig(model=model, **options))
        return deploy(prepared, solve(prepared))

    return make


@pytest.mark.parametrize("by", ["predictor", "executors"])
def test_serial_never_computes_hot_and_cold_at_once(
    model: Path, deployed: Callable[..., Deployment], by: str
) -> None:
    settings = {"predictor.by": by}
    options: dict[str, Any] = {"settings": settings, "policy": "random"}
    serial = deployed(schedule="serial", **options)
    overlapping = deployed(schedule="paper", **options)
    layout = serial.layout
    hot = [step for step in serial.programs["gpu"] if step["op"] == 3]
    assert len(hot) == 4
    for step in hot:
        assert layout.flag("y", int(step["layer"])) in step["wait"]
    for step in overlapping.programs["gpu"]:
        assert step["op"] != 3 or layout.flag("y", int(step["layer"])) not in step["wait"]
    ids = np.random.default_rng(0).integers(3, 100, 40).tolist()
    with LocalSession(serial) as one, LocalSession(overlapping) as other:
        np.testing.assert_array_equal(one.logits(ids)[0], other.logits(ids)[0])


@pytest.mark.parametrize("depth", [1, 2])
def test_lookahead_predicts_from_an_earlier_layer(
    model: Path, deployed: Callable[..., Deployment], depth: int
) -> None:
    ids = np.random.default_rng(1).integers(3, 100, 40).tolist()
    options: dict[str, Any] = {"predictor": "low-rank"}
    settings = {"predictor.rank": "12"}
    ahead = deployed(
        schedule="lookahead", settings=settings | {"schedule.depth": str(depth)}, **options
    )
    x_by_layer = [slots.x for slots in ahead.layout.layers]
    reads = [int(step["x"]) for step in ahead.programs["predictor"]]
    assert reads == [x_by_layer[max(layer - depth, 0)] for layer in range(4)]
    plain = deployed(schedule="selective", settings=settings, **options)
    with LocalSession(ahead) as one, LocalSession(plain) as other:
        logits, masks_TLN = one.logits(ids)
        _, plain_TLN = other.logits(ids)
    assert (masks_TLN[:, 0] == plain_TLN[:, 0]).all(), "the first layer has nothing to look back to"
    assert (masks_TLN != plain_TLN).any(), "looking ahead changed nothing"
    expected = Oracle.load(model).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)


def test_lookahead_without_a_predictor_is_selective(deployed: Callable[..., Deployment]) -> None:
    by = {"predictor.by": "executors"}
    one, other = deployed(schedule="lookahead", settings=by), deployed(settings=by)
    for actor, program in one.programs.items():
        np.testing.assert_array_equal(program, other.programs[actor])
