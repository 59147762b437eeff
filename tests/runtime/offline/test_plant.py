"""Planted Llamas: the statistics asked for, along unseen tokens; refusals of what cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracle import Oracle
from support.planted import UNSEEN, likeness, measure, options, overlap, traces

from hotcold.native.errors import ConfigError
from hotcold.runtime.offline.plant.making import PlantReport, plant
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.offline.plant.overfire import plan_noise, quantile
from hotcold.runtime.offline.plant.shapes import SHAPES
from hotcold.runtime.offline.plant.statistics import (
    CAP,
    Statistics,
    firing_probabilities,
    share_holding,
)
from hotcold.runtime.profiles.profile import ActivationProfile


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def noisy(folder: Path) -> PlantReport:
    """A model with a predictor that misses and over-fires, as a Hugging Face folder."""
    asked = options(recall=0.95, precision=0.6)
    return plant(asked, folder / "noisy", form="hf", device="cpu")


# ---- statistics ----------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [192, 13824])
@pytest.mark.parametrize(
    ("density", "share80"), [(0.12, 0.43), (0.12, 0.30), (0.03, 0.26), (0.18, 0.43), (0.005, 0.1)]
)
def test_the_law_has_the_density_and_skewness_asked_for(
    n: int, density: float, share80: float
) -> None:
    p_N = firing_probabilities(n, density, share80)
    assert p_N.mean() == pytest.approx(density, rel=1e-6)
    assert share_holding(p_N) == pytest.approx(share80, abs=0.6 / n + 1e-3)
    assert (np.diff(p_N) <= 0).all()
    assert 0 < p_N[-1] <= p_N[0] <= CAP


def test_every_shape_has_statistics_that_exist() -> None:
    for shape in SHAPES.values():
        density_L = Statistics(shape.density, shape.share80, shape.quiet).density_L(shape.layers)
        assert density_L.mean() == pytest.approx(shape.density)
        for density in (density_L[0], density_L[-1]):
            firing_probabilities(shape.neurons, density, shape.share80)


def test_quiet_layers_are_quiet_and_the_mean_is_kept() -> None:
    density_L = Statistics(0.05, 0.26, quiet=0.5, quiet_density=0.001).density_L(10)
    assert (density_L[:5] == 0.001).all()
    assert (density_L[5:] > 0.05).all()
    assert density_L.mean() == pytest.approx(0.05)


@pytest.mark.parametrize(
    "asked",
    [
        {"density": 0.0},
        {"density": 0.5, "share80": 0.3},
        {"density": 0.6, "quiet": 0.5},
        {"share80": 0.8},
        {"density": float("nan")},
        {"recall": 0.0},
        {"precision": 0.1},
        {"correlation": 1.0},
        {"drift": -0.1},
        {"layers": 5},
        {"layers": 0},
        {"hidden": 4},
        {"hidden": 257},
        {"dtype": "int4"},
        {"tokens": 1},
        {"shape": "opt-1t"},
    ],
    ids=str,
)
def test_what_cannot_be_planted_is_refused_first(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="."):
        plant(PlantOptions(**{"shape": "small", **asked}), tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recall", "precision"), [(0.95, 0.6), (0.99, 0.9), (1.0, 0.5), (0.8, 1.0)]
)
def test_noise_has_the_recall_and_precision_asked_for(recall: float, precision: float) -> None:
    p_N = firing_probabilities(400, 0.12, 0.43)
    noise = plan_noise(p_N, recall, precision)
    rng = np.random.default_rng(0)
    g_MN, w_MN = rng.standard_normal((2, 4000, 400))
    a_N = noise.correlation_N
    fires = g_MN > quantile(p_N)
    proposes = a_N * g_MN + np.sqrt(1 - a_N**2) * w_MN > quantile(noise.proposed_N)
    hit = (fires & proposes).sum()
    assert hit / fires.sum() == pytest.approx(recall, rel=0.01)
    assert hit / proposes.sum() == pytest.approx(precision, rel=0.01)


# ---- measured along the walk, in contexts that calibration has not seen -------------------------
def test_unseen_tokens_show_what_was_asked_for(noisy: PlantReport) -> None:
    seen = measure(Oracle.load(noisy.path), noisy)
    profile = ActivationProfile(seen.fired_LN, UNSEEN)
    assert seen.density_L.mean() == pytest.approx(0.12, rel=0.04)
    assert profile.share_for(0.8).mean() == pytest.approx(0.43, rel=0.04)
    assert seen.recall == pytest.approx(0.95, rel=0.02)
    assert seen.precision == pytest.approx(0.6, rel=0.03)
    assert (noisy.recall, noisy.precision) == pytest.approx((0.95, 0.6), rel=0.02)
    written = ActivationProfile.load(noisy.path / "activations.npz")
    agreement = np.corrcoef(written.probabilities_LN.reshape(-1), seen.fired_LN.reshape(-1))
    assert agreement[0, 1] > 0.98


def test_the_exact_predictor_is_exact(folder: Path) -> None:
    exact = plant(options("tiny"), folder / "exact", form="hf", device="cpu")
    seen = measure(Oracle.load(exact.path), exact, 500)
    assert seen.hit == seen.fired_LN.sum()
    assert seen.precision > 0.97


def test_correlation_makes_neighbours_alike(folder: Path, noisy: PlantReport) -> None:
    asked = options(correlation=0.9, dtype="bfloat16")
    alike = plant(asked, folder / "alike", form="hf", device="cpu")
    assert alike.density == pytest.approx(0.12, rel=0.02)
    [near] = traces(Oracle.load(alike.path), 250)
    [far] = traces(Oracle.load(noisy.path), 250)
    assert overlap(near) > overlap(far) + 0.15


def test_drift_moves_the_hot_neurons(folder: Path, noisy: PlantReport) -> None:
    drifting = plant(options(drift=0.5), folder / "drift", form="hf", device="cpu")
    drifted, steady = (likeness(Oracle.load(made.path)) for made in (drifting, noisy))
    assert drifted < steady - 0.1
