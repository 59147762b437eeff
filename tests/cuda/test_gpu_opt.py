"""OPT with the GPU executor on a GPU: the oracle's logits for every form, plan and batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import check_batches, check_gate_first, check_masked, session
from support.opt_models import FORMS, TinyOpt, write_opt
from support.opt_oracle import OptOracle

pytestmark = pytest.mark.gpu

MORE = {
    "wide": TinyOpt(d=256, layers=2, neurons=2500, heads=4, dtype="float16", seed=9),
    "350m, float16": TinyOpt(
        d=128, layers=2, neurons=300, heads=4, embed=64, pre_norm=False, dtype="float16", seed=10
    ),
}
ALL = {**FORMS, **MORE}
LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "9", "predictor.margin": "0.5"},
}


@pytest.fixture(params=list(ALL), scope="module")
def form(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("models") / "model"
    return write_opt(folder, ALL[request.param]), request.param


def ids_of(name: str, count: int) -> list[int]:
    return np.random.default_rng(0).integers(4, ALL[name].vocab, count).tolist()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_logits_are_the_oracles_gate_first(form: tuple[Path, str], share: float) -> None:
    model, name = form
    check_gate_first(model, OptOracle.load(model), ids_of(name, 50), share)


@pytest.mark.parametrize("predictor", ["low-rank", "sign"])
@pytest.mark.parametrize(("share", "batch"), [(0.0, 32), (0.3, 5), (0.95, 1), (1.0, 17)])
def test_logits_are_the_masked_oracles(
    form: tuple[Path, str], predictor: str, share: float, batch: int
) -> None:
    model, name = form
    options = LOW_RANK if predictor == "low-rank" else {"predictor": "sign"}
    oracle = OptOracle.load(model)
    proposed = check_masked(model, oracle, ids_of(name, 45), share, max_batch=batch, **options)
    assert 0.02 < proposed < 1


@pytest.mark.parametrize("predictor", ["low-rank", "sign"])
def test_batch_changes_no_bit(form: tuple[Path, str], predictor: str) -> None:
    model, name = form
    check_batches(model, ids_of(name, 37), (32, 3, 1), predictor=predictor)


def test_lookahead_and_neurons_over_the_bus_change_what_is_masked_alone(
    form: tuple[Path, str],
) -> None:
    model, name = form
    ids = ids_of(name, 40)
    for options in ({"schedule": "lookahead"}, {"bus_share": 0.4}, {"schedule": "selective"}):
        with session(model, 0.5, **LOW_RANK, **options) as local:
            logits, masks_TLN = local.logits(ids)
        masked = OptOracle.load(model).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
        np.testing.assert_allclose(logits, masked.logits_TV, atol=1e-3, rtol=0)
