"""Models of every activation on a GPU: decode and dense prompts, what fires and what is missed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.activations import SPARSE, oracle, read_as
from support.gpu import Share
from support.models import TinyLlama, write_llama

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

pytestmark = pytest.mark.gpu

MODEL = TinyLlama(d=48, layers=3, neurons=160, heads=4, kv_heads=2, context=256)
IDS = np.random.default_rng(0).integers(4, 190, 60).tolist()
LOW_RANK: dict[str, Any] = {"predictor": "low-rank"}
LOW_RANK |= {"settings": {"predictor.rank": "6", "predictor.margin": "0"}}


@pytest.mark.parametrize("form", ["sparse", "dense"])
@pytest.mark.parametrize("share", [0.4, 1.0])
@pytest.mark.parametrize("predictor", [{"predictor": "exact"}, LOW_RANK], ids=["exact", "low-rank"])
@pytest.mark.parametrize("name", SPARSE)
def test_logits_and_counts_are_the_oracles(
    plugin: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    predictor: dict[str, Any],
    share: float,
    form: str,
) -> None:
    folder = tmp_path / "model"
    write_llama(folder, MODEL)
    read_as(monkeypatch, name)
    options: dict[str, Any] = {"policy": Share(share), "prompt_form": form, **predictor}
    prepared = prepare_model(EngineConfig(model=folder, vram="2GiB", context=256, **options))
    assert prepared.gpu is not None
    guesses = predictor is LOW_RANK
    made = replace(deploy(prepared, solve(prepared)), audit_every=int(guesses))
    with LocalSession(made) as local:
        logits, masks_TLN = local.logits(IDS)
        states = [local.segment.actor_state(actor) for actor in ("gpu", "cpu")]
    model = oracle(folder, name)
    masks_LTN = masks_TLN.transpose(1, 0, 2) if guesses else None
    trace = model.forward(IDS, masks_LTN=masks_LTN)
    np.testing.assert_allclose(logits, trace.logits_TV, atol=1e-3, rtol=0)
    fires_LTN = model.fires(trace.gates_LTN)
    wanted = (fires_LTN & trace.masks_LTN).sum()
    assert abs(sum(state.up_down_rows for state in states) - wanted) <= max(3, 1e-3 * wanted)
    if guesses and form == "sparse":
        missed = (fires_LTN & ~trace.masks_LTN).sum()
        assert missed > 100
        assert abs(sum(state.audit_missed for state in states) - missed) <= max(3, missed // 500)
