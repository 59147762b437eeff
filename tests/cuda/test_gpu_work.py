"""Bytes by the steps of the programs are the bytes that a GPU executor and its CPU count."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.gpu import session
from support.work import INT8, MODELS, Rows, Run, ids_of, oracle_of, write_models

from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.low_rank import LowRank
from hotcold.policies.predictor.sign import Sign

pytestmark = pytest.mark.gpu

PREDICTORS: dict[str, dict[str, Any]] = {
    "none": {"predictor": Exact()},
    "matrices": {"predictor": LowRank(rank=6)},
    "int8": {"predictor": LowRank(rank=6), "predictor_dtype": "int8"},
    "sign": {"predictor": Sign(recall=0.8)},
}
SHARES = {"hot": 1.0, "mixed": 0.5, "cold": 0.0}
SCHEDULES = ("selective", "lookahead", "paper", "fetch")


def cases() -> list[tuple[str, str, str, str]]:
    """Every model with every predictor and placement, and each of these with every schedule."""
    pairs = enumerate(product((*MODELS, INT8), PREDICTORS))
    return [
        (model, predictor, share, SCHEDULES[(i + j) % len(SCHEDULES)])
        for i, (model, predictor) in pairs
        for j, share in enumerate(SHARES)
    ]


def dtype_of(model: str) -> dict[str, Any]:
    return {"dtype": "int8"} if model == INT8 else {}


@pytest.fixture(scope="module")
def folders(plugin: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(("model", "predictor", "share", "schedule"), cases())
def test_steps_say_what_is_counted(
    folders: dict[str, Path], model: str, predictor: str, share: str, schedule: str
) -> None:
    oracle = oracle_of(model, folders[model])
    for batch in (1, 32):
        options = {"max_batch": batch, "schedule": schedule, "audit": 8, "prompt_form": "sparse"}
        options |= PREDICTORS[predictor] | dtype_of(model)
        with session(folders[model], SHARES[share], **options) as local:
            run = Run.of(local, ids_of(45))
            # A row counts for each token of a block on a GPU, once a block beside it.
            assert run.stated("gpu", run.counted("gpu")) == run.state("gpu").bytes
            once = run.counted("cpu") if batch == 1 else run.read_once(oracle, "cpu")
            assert run.stated("cpu", once) == pytest.approx(run.state("cpu").bytes, rel=0.01)


@pytest.mark.parametrize("predictor", ["none", "matrices", "sign"])
@pytest.mark.parametrize("model", [*MODELS, INT8])
def test_a_dense_prompt_reads_the_model_once(
    folders: dict[str, Path], model: str, predictor: str
) -> None:
    """Resident or streamed, and records with their padding."""
    for share in SHARES.values():
        options = {"prompt_form": "dense", **PREDICTORS[predictor], **dtype_of(model)}
        with session(folders[model], share, **options) as local:
            run = Run.of(local, ids_of(40))
            spec, plan = local.deployment.spec, local.deployment.plan
            records = spec.n_layers * spec.n_neurons * int(plan.neuron_bytes_L[0])
            whole = replace(run, batch=len(run.ids))
            assert run.state("gpu").bytes == whole.stated("gpu", Rows()) + records
