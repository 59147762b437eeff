"""Training predictors of OPT, whose neurons have biases and no gate of their own."""

from pathlib import Path

import numpy as np
import pytest
from support.opt_models import FORMS, write_opt
from support.opt_oracle import OptOracle

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.offline.training.settings import FitSettings, TrainSettings
from hotcold.runtime.offline.training.train import train_predictors
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.profiles.profile import ActivationProfile

QUICK = TrainSettings(
    share=1.0,
    start=0.4,
    perplexity=0,
    rounds=1,
    context=24,
    workers=1,
    width=24,
    fit=FitSettings(epochs=30),
)


def windows(count: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 300, (count, 24)).tolist()


@pytest.mark.parametrize("form", ["odd", "350m"])
def test_predictors_of_opt_learn_what_fires(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "opt"
    write_opt(folder, FORMS[form])
    bundle = resolve_model(folder, cache=tmp_path / "cache")
    oracle = OptOracle.load(folder)
    fired = [oracle.forward(window).gates_LTN > 0 for window in windows(10, 1)]
    counts_LN = np.sum([np.asarray(one).sum(axis=1) for one in fired], axis=0)
    profile = ActivationProfile(counts_LN.astype(np.int64), 10 * 24, bundle.checksum)
    out = tmp_path / "run"
    train_predictors(bundle, profile, windows(150, 2), windows(30, 3), windows(10, 4), out, QUICK)

    config = EngineConfig(model=str(folder), predictor=str(out), threads=1)
    prepared = prepare_model(config)
    ids = windows(1, 5)[0]
    with LocalSession(deploy(prepared, solve(prepared))) as session:
        logits_TV, masks_TLN = session.logits(ids)
    masks_LTN = masks_TLN.transpose(1, 0, 2)
    expected = oracle.forward(ids, masks_LTN=masks_LTN)
    np.testing.assert_allclose(logits_TV, expected.logits_TV, atol=1e-3)
    fired_LTN = expected.gates_LTN > 0
    recall = (masks_LTN & fired_LTN).sum() / fired_LTN.sum()
    assert recall > masks_LTN.mean() + 0.05  # better than proposing as many at random
    assert recall > 0.8
    assert masks_LTN.mean() < 0.95
