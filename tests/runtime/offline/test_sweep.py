"""sweep and audit trials: curves against evaluate's single points, coverage against the truth."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.models import TinyLlama, write_llama

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.offline.evaluation.audit_trials import run_trials
from hotcold.runtime.offline.evaluation.evaluate import evaluate_all
from hotcold.runtime.offline.evaluation.sweep import MARGINS, OWN, RECALLS, equal_rank, sweep
from hotcold.runtime.offline.training.settings import FitSettings, TrainSettings
from hotcold.runtime.offline.training.train import train_predictors
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.profiles.profile import ActivationProfile

SHAPE = TinyLlama(d=32, layers=2, neurons=96, heads=4, kv_heads=2)


def windows(count: int, seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 300, (count, 32)).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that comes with predictors trained on it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, SHAPE)
    bundle = resolve_model(folder)
    counts = np.full((2, 96), 500, np.int64)
    settings = TrainSettings(
        share=0.5, start=0.4, perplexity=0, rounds=1, context=32, workers=1, fit=FitSettings(2)
    )
    parts = windows(100, 1), windows(10, 2), windows(10, 3)
    train_predictors(bundle, ActivationProfile(counts, 1000), *parts, folder, settings)
    return folder


def test_the_curve_is_made_of_evaluates_points(folder: Path) -> None:
    config = EngineConfig(model=folder, context=32)
    ticks: list[float] = []
    text = windows(4, 7)
    curves = sweep(config, [*text, [5]], lambda done, share: ticks.append(share))
    assert ticks[-1] == 1 and curves.tokens == 4 * 31
    kinds = [point.kind for point in curves.points]
    assert kinds == ["learned"] * (1 + len(RECALLS)) + ["low-rank"] * len(MARGINS)
    assert curves.points[0].setting == OWN
    at_95 = replace(config, predictor="learned", settings={"predictor.recall": "0.95"})
    single = evaluate_all([at_95], text, 0)[0]
    point = curves.points[1 + RECALLS.index(0.95)]
    assert point.audit == single.audit
    assert point.ratio == pytest.approx(single.ratio, rel=1e-6)
    assert curves.perplexity_dense == pytest.approx(single.perplexity_dense, rel=1e-6)
    assert point.gate_first_bytes == pytest.approx(single.ffn_bytes.gate_first)
    assert curves.exact_bytes == pytest.approx(single.ffn_bytes.exact, rel=0.05)
    learned = [p.audit for p in curves.points if p.kind == "learned"][1:]
    assert [a.density for a in learned] == sorted(a.density for a in learned)
    assert learned[-1].recall > learned[0].recall
    own = curves.density_at("learned", 0.9)
    assert own is not None and learned[0].density < own < learned[-1].density
    assert curves.density_at("learned", 0.1) is None


def test_the_low_rank_has_the_same_bytes(folder: Path) -> None:
    learned = prepare_model(EngineConfig(model=folder, predictor="learned"))
    rank = equal_rank(learned)
    settings = {"predictor.rank": str(rank)}
    other = prepare_model(EngineConfig(model=folder, predictor="low-rank", settings=settings))
    step = 2 * (32 + 96) * learned.bundle.spec.element_bytes  # one more of rank
    difference = sum(other.predictor_bytes_L) - sum(learned.predictor_bytes_L)
    assert abs(difference) <= step / 2


def test_what_cannot_be_swept(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_llama(plain, SHAPE)
    for config, error, words in (
        (EngineConfig(model=folder, predictor="exact"), ConfigError, "--predictor is exact"),
        (EngineConfig(model=plain), CheckpointError, "has none"),
    ):
        with pytest.raises(error, match=words):
            sweep(config, windows(1, 0))
    with pytest.raises(ConfigError, match="two tokens"):
        sweep(EngineConfig(model=folder), [[1]])


def test_audit_trials_hold_intervals_against_the_truth(folder: Path) -> None:
    config = EngineConfig(model=folder, context=64, audit=8)
    found = run_trials(config, windows(1, 9)[0], 40, rounds=1)
    assert (found.every, found.tokens, found.runs, found.unchanged) == (8, 32, 40, 40)
    truth = evaluate_all([config], windows(1, 9), 0)[0].audit.recall
    assert found.recall == pytest.approx(truth, abs=1e-3)
    assert 34 <= found.covered <= 40
    assert 0 < found.half_width <= found.half_width_max
    assert math.isfinite(found.busy_share) and math.isfinite(found.speed_loss)
    wider = run_trials(replace(config, audit=32), windows(1, 9)[0], 10, rounds=0)
    assert wider.half_width > found.half_width
    assert math.isnan(wider.busy_share)


def test_nothing_to_audit_is_refused(folder: Path) -> None:
    for config in (
        EngineConfig(model=folder, predictor="exact"),
        EngineConfig(model=folder, audit=0),
    ):
        with pytest.raises(ConfigError, match="not audited"):
            run_trials(config, windows(1, 0)[0], 1)
