"""Schedules drawn at random on a GPU: refused by name, or the oracle's logits, steps in order."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.schedules import Given, check_run, placements, plan_of, schedules
from support.work import MODELS, ids_of, oracle_of, write_models

from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.low_rank import LowRank
from hotcold.runtime.engine.deployment import deploy
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

pytestmark = [pytest.mark.gpu, pytest.mark.alone]  # compares times of two clocks

PREDICTORS = {"none": Exact(), "matrices": LowRank(rank=6)}


@pytest.fixture(scope="module")
def folders(plugin: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data(), st.sampled_from(list(MODELS)), st.sampled_from(list(PREDICTORS)))
def test_any_schedule_that_a_gpu_takes_gives_the_oracles_logits(
    folders: dict[str, Path], data: Any, model: str, predictor: str
) -> None:
    options: dict[str, Any] = {"max_batch": 4, "prompt_form": "sparse", "vram": "2GiB"}
    options["predictor"] = PREDICTORS[predictor]
    prepared = prepare_model(EngineConfig(model=folders[model], **options))
    assert prepared.gpu is not None
    spec = prepared.bundle.spec
    device_LN = data.draw(placements(spec.n_layers, spec.n_neurons))
    plan, dag = plan_of(prepared, device_LN)
    made = data.draw(schedules(dag, 1))
    try:
        deployment = deploy(prepared, plan, Given(device_LN, made))
    except ConfigError as error:
        assert "GPU" in str(error)  # noqa: PT017 - refused, as it may be
        return
    check_run(deployment, dag, made, oracle_of(model, folders[model]), ids_of(11))
