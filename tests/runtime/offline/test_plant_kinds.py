"""Planted OPT and Falcon shapes: the statistics asked for, logits that others compute, too."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.falcon_oracle import FalconOracle
from support.opt_oracle import OptOracle
from support.oracle import Oracle
from support.planted import (
    likeness,
    measure,
    options,
    overlap,
    session,
    traces,
)

from hotcold.runtime.model.block import POST_NORM
from hotcold.runtime.model.checkpoints.bundle import open_bundle, resolve_model
from hotcold.runtime.offline.plant.making import PlantReport, plant
from hotcold.runtime.offline.plant.shapes import SHAPES
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.text.tokenizer import Tokenizer

# opt-350m's form: narrower embeddings, norms behind the residual additions, none at the end
SMALL_350M = replace(SHAPES["small-opt"], embed_dim=96, block=POST_NORM)
ORACLES: dict[str, type[Oracle]] = {
    "small-opt": OptOracle,
    "small-350m": OptOracle,
    "small-falcon": FalconOracle,
}
KINDS = list(ORACLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


def make(shape: str, path: Path, **more: Any) -> PlantReport:
    """A model as whatever its oracle reads."""
    return plant(options(shape, **more), path, form="hf", device="cpu")


@pytest.fixture(scope="module", autouse=True)
def small_350m() -> Any:
    SHAPES["small-350m"] = SMALL_350M
    yield
    del SHAPES["small-350m"]


@pytest.fixture(scope="module")
def exact(folder: Path, small_350m: None) -> dict[str, PlantReport]:
    return {kind: make(kind, folder / kind) for kind in KINDS}


# ---- statistics ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_unseen_tokens_show_what_was_asked_for(exact: dict[str, PlantReport], kind: str) -> None:
    planted, shape = exact[kind], SHAPES[kind]
    seen = measure(ORACLES[kind].load(planted.path), planted)
    asked_L = options(kind).drawing(False).statistics.density_L(2)
    assert seen.density_L.mean() == pytest.approx(shape.density, rel=0.04)
    np.testing.assert_allclose(seen.density_L, asked_L, rtol=0.08)
    share_L = ActivationProfile(seen.fired_LN, seen.tokens).share_for(0.8)
    assert share_L[1] == pytest.approx(shape.share80, rel=0.06)
    assert seen.hit == seen.fired_LN.sum(), "an exact predictor misses nothing"
    assert seen.precision > 0.97
    assert (planted.recall, planted.precision) == (1, 1)
    assert planted.density == pytest.approx(shape.density, rel=0.01)
    written = ActivationProfile.load(planted.path / "activations.npz")
    agreement = np.corrcoef(written.probabilities_LN.reshape(-1), seen.fired_LN.reshape(-1))
    assert agreement[0, 1] > 0.95


@pytest.mark.parametrize("kind", ["small-opt", "small-falcon"])
def test_noise_has_the_recall_and_precision_asked_for(kind: str, tmp_path: Path) -> None:
    planted = make(kind, tmp_path / "m", recall=0.9, precision=0.5)
    seen = measure(ORACLES[kind].load(planted.path), planted, 750)
    assert seen.recall == pytest.approx(0.9, rel=0.03)
    assert seen.precision == pytest.approx(0.5, rel=0.04)
    assert (planted.recall, planted.precision) == pytest.approx((0.9, 0.5), rel=0.02)


def test_correlation_and_drift(exact: dict[str, PlantReport], tmp_path: Path) -> None:
    plain = OptOracle.load(exact["small-opt"].path)
    alike = OptOracle.load(make("small-opt", tmp_path / "alike", correlation=0.8).path)
    drifting = OptOracle.load(make("small-opt", tmp_path / "drift", drift=0.5).path)
    [near], [far] = traces(alike, 250), traces(plain, 250)
    assert overlap(near) > overlap(far) + 0.15
    assert likeness(drifting) < likeness(plain) - 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_channel_0_is_constant_behind_the_norm(exact: dict[str, PlantReport], kind: str) -> None:
    """Whatever the mean that a layer norm takes out of every channel."""
    [trace] = traces(ORACLES[kind].load(exact[kind].path), 250)
    assert np.ptp(trace.inputs_LTD[..., 0]) == 0
    assert trace.inputs_LTD[0, 0, 0] == 4
    if kind != "small-350m":  # whose residual stream is normed already
        mean_LT = trace.residuals_LTD.mean(axis=-1)
        assert np.ptp(mean_LT) > 0.1, "there was no mean to survive"


# ---- valid checkpoints ---------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("predictor", ["exact", "learned"])
def test_logits_are_the_oracles(exact: dict[str, PlantReport], kind: str, predictor: str) -> None:
    ids = np.random.default_rng(0).integers(0, exact[kind].spec.vocab_size, 60).tolist()
    expected = ORACLES[kind].load(exact[kind].path).forward(ids).logits_TV
    assert np.abs(expected).max() > 5
    with session(exact[kind].path, predictor=predictor) as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_same(exact: dict[str, PlantReport], kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    path = exact[kind].path
    model, said = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(said[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = np.random.default_rng(1).integers(0, exact[kind].spec.vocab_size, 60).tolist()
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0].numpy()
    with session(path, predictor="exact") as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_bundle_and_checkpoint_are_the_same_model(kind: str, dtype: str, tmp_path: Path) -> None:
    asked = options(kind, dtype=dtype, layers=1, tokens=128)
    made = plant(asked, tmp_path / "bundle", device="cpu")
    other = plant(asked, tmp_path / "hf", form="hf", device="cpu")
    converted = resolve_model(other.path, cache=tmp_path / "cache")
    assert open_bundle(made.path).checksum == made.checksum == converted.checksum
    assert converted.spec == made.spec


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_walks_on_without_a_loop(exact: dict[str, PlantReport], kind: str) -> None:
    sampling = Sampling(max_tokens=300)
    with session(exact[kind].path, predictor="learned") as local:
        prompt = Tokenizer.load(exact[kind].path).encode("Once")
        ids = [id_ for id_, _ in local.sample(prompt, sampling)]
    assert len(set(ids)) == 300
