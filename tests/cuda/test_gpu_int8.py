"""int8 neurons on a GPU: logits of their exact weights, hot and cold, decoded and as a prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import Share, check_batches, check_gate_first, check_masked, ids_of, session
from support.int8 import records_of, requantised
from support.models import CONTEXT, PROMPTED, TinyLlama, write_llama
from support.opt_models import FORMS, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle

from hotcold.runtime.engine.executors.base import Executor

pytestmark = pytest.mark.gpu

TINY = {
    "even": TinyLlama(d=64, neurons=96, context=CONTEXT),
    **PROMPTED,
}
LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "6", "predictor.margin": "0.5"},
}
SPARSE: dict[str, Any] = {"dtype": "int8", "prompt_form": "sparse"}
DENSE: dict[str, Any] = {"prompt_form": "dense", "context": CONTEXT}
ROUNDED = 0.01  # of logits, where a prompt widens weights to float16; with floats 1e-3


@pytest.fixture(params=list(TINY), scope="module")
def tiny(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    return write_llama(folder, TINY[request.param])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_logits_are_the_oracles_gate_first(tiny: Path, share: float) -> None:
    oracle = requantised(Oracle.load(tiny))
    check_gate_first(tiny, oracle, ids_of(tiny, 50), share, **SPARSE)


@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("batch", [32, 5, 1])
def test_logits_are_the_masked_oracles(tiny: Path, share: float, batch: int) -> None:
    oracle = requantised(Oracle.load(tiny))
    more = {"max_batch": batch, **SPARSE, **LOW_RANK}
    assert 0.05 < check_masked(tiny, oracle, ids_of(tiny, 45), share, **more) < 0.98


@pytest.mark.parametrize("options", [{}, {"bus_share": 0.4}])
def test_batch_changes_no_bit(tiny: Path, options: dict[str, Any]) -> None:
    check_batches(tiny, ids_of(tiny, 37), (32, 8, 3, 1), dtype="int8", **LOW_RANK, **options)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", list(FORMS))
def test_neurons_with_a_bias_and_no_up_row(
    plugin: Any, tmp_path: Path, name: str, share: float
) -> None:
    form = replace(FORMS[name], context=CONTEXT)
    model = write_opt(tmp_path / "opt", form)
    ids = np.random.default_rng(0).integers(4, form.vocab, 40).tolist()
    oracle = requantised(OptOracle.load(model))
    check_gate_first(model, oracle, ids, share, dtype="int8")
    with session(model, share, dtype="int8", **DENSE) as local:
        logits, _ = local.logits(ids)
        assert local.segment.actor_state("cpu").passes == 0
    exact = 1e-3 if form.dtype == "float32" else ROUNDED
    np.testing.assert_allclose(logits, oracle.forward(ids).logits_TV, atol=exact, rtol=0)


@pytest.mark.parametrize(
    ("share", "options"),
    [
        (0.0, {"predictor": "exact"}),
        (0.4, {"predictor": "exact"}),
        (1.0, {"predictor": "exact"}),
        (0.4, LOW_RANK),
        (0.4, {"bus_share": 0.4}),
    ],
)
def test_a_dense_prompt_widens_neurons(tiny: Path, share: float, options: dict[str, Any]) -> None:
    """On the device and streamed; exactly where the other matrices are float32."""
    ids = ids_of(tiny, 130)
    with session(tiny, share, dtype="int8", **options, **DENSE) as local:
        logits, masks_TLN = local.logits(ids)
        assert local.segment.actor_state("cpu").passes == 0
        exact = 1e-3 if local.deployment.spec.dtype == "float32" else ROUNDED
    oracle = requantised(Oracle.load(tiny))
    expected = oracle.forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2)).logits_TV
    np.testing.assert_allclose(logits, expected, atol=exact, rtol=0)


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("options", [{"predictor": "exact"}, LOW_RANK, {"bus_share": 0.4}])
@pytest.mark.parametrize("hot", ["int8", "float32", "float16"])
def test_what_is_hot_may_have_a_format_of_its_own(
    plugin: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hot: str,
    options: dict[str, Any],
    form: str,
) -> None:
    """int8 beside the model's floats, and floats beside an int8 model's cold neurons."""
    model = write_llama(tmp_path / "model", TinyLlama(d=80, neurons=300, context=CONTEXT))
    oracle = Oracle.load(model)
    base = Executor._own

    def own(self: Executor, device: int, shared: Any) -> dict[str, Any]:
        fields = base(self, device, shared)
        if self.actor == "gpu":
            records_L, record = records_of(oracle, self.bundle.spec, hot)
            for owned, records in zip(fields["owned_L"], records_L, strict=True):
                owned |= {"records": records, "record": record}
        return fields

    monkeypatch.setattr(Executor, "_own", own)
    more = {**options, "prompt_form": form, "context": CONTEXT, "policy": Share(0.4)}
    more |= {} if hot == "int8" else {"dtype": "int8"}
    ids = ids_of(model, 100)
    with session(model, None, **more) as local:
        logits, masks_TLN = local.logits(ids)
        hot_LN = local.deployment.computed_plan.device_LN == 0
    assert 0 < hot_LN.mean() < 1
    masks_LTN = masks_TLN.transpose(1, 0, 2)
    mixed = requantised(oracle, hot_LN) if hot == "int8" else requantised(oracle, ~hot_LN, rest=hot)
    expected = mixed.forward(ids, masks_LTN=masks_LTN).logits_TV
    for other in (oracle, requantised(oracle)):  # it can be told which weights were taken
        assert np.abs(other.forward(ids, masks_LTN=masks_LTN).logits_TV - expected).max() > 3e-3
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
