"""Exchanges left out: how many the profile lets one expect, and how many a run leaves out."""

from pathlib import Path

import numpy as np
import pytest
from support.planted import options

from hotcold.native.errors import ConfigError
from hotcold.runtime.bench import sync
from hotcold.runtime.offline.plant.making import plant
from hotcold.runtime.offline.plant.shaped import shaped_problem
from hotcold.runtime.options.config import EngineConfig


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "quiet"
    asked = options("small", layers=4, quiet=0.5, quiet_density=0.0008)
    plant(asked, folder, device="cpu")
    return folder


def test_what_is_expected_is_what_draws_give() -> None:
    rng = np.random.default_rng(0)
    p_LN = rng.random((5, 40)) * np.array([[0.01], [0.1], [0.5], [0.02], [0.01]])
    cold_LN = rng.random(p_LN.shape) < 0.5
    cold_LN[4] = False
    skips_L = sync.expected_skips_L(p_LN, cold_LN)
    fired_TLN = rng.random((20_000, *p_LN.shape)) < p_LN
    drawn_L = (~(fired_TLN & cold_LN).any(axis=2)).mean(axis=0)
    np.testing.assert_allclose(skips_L[:3], drawn_L[:3], atol=0.02)
    assert skips_L[0] > 0.5 > skips_L[2]
    assert skips_L[3] == 0, "the last exchange of a token is always awaited"
    assert skips_L[4] == 0, "there is none"


def test_a_neuron_that_always_fires_is_never_skipped() -> None:
    p_LN = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    skips_L = sync.expected_skips_L(p_LN, np.ones(p_LN.shape, bool))
    np.testing.assert_allclose(skips_L, [0, 1, 0], atol=1e-9)


def test_the_placement_keeps_the_coldest_of_quiet_layers_on_the_host() -> None:
    problem = shaped_problem("small-opt", 1 << 30)
    p_LN = np.array(problem.activations_LN)
    p_LN[:2] *= 0.0009 / p_LN[:2].mean(axis=1, keepdims=True)
    problem = type(problem)(**{**vars(problem), "activations_LN": p_LN})
    device_LN = sync.QuietResident(0.9).place(problem).device_LN
    assert (device_LN[2:] == 0).all(), "there is room for all of the others"
    on_host_LN = device_LN[:2] == len(problem.devices) - 1
    assert np.allclose(on_host_LN.mean(axis=1), 0.1, atol=1e-3)
    for layer in range(2):
        assert p_LN[layer][on_host_LN[layer]].max() <= p_LN[layer][~on_host_LN[layer]].min()


def test_the_13b_shape_has_nothing_to_leave_out() -> None:
    big = sync.shape_13b()
    assert big["layers_with_exchange"] == 40
    assert big["expected_skipped_per_token"] < 1e-6
    assert big["fewest_cold_active"] > 100


def test_a_run_leaves_out_what_the_profile_says(quiet: Path) -> None:
    found = sync.measure(EngineConfig(model=quiet, vram="24MiB"), tokens=30, rounds=1)
    assert found["paper"]["skipped_per_token"] == 0
    assert found["plan"]["quiet_layers"] == 2
    assert found["plan"]["quiet_firing"] < 1e-3
    assert found["plan"]["quiet_resident"] > 0.95
    expected = found["plan"]["expected_skipped_per_token"]
    assert found["plan"]["layers_with_exchange"] == 2 and 0.5 < expected <= 1
    assert found["selective"]["skipped_per_token"] == pytest.approx(expected, abs=0.3)
    assert found["saved_us_each"] is not None
    by = {"predictor.by": "executors"}
    with pytest.raises(ConfigError, match="without a predictor"):
        sync.measure(EngineConfig(model=quiet, predictor="exact", settings=by))


def test_a_model_without_quiet_layers_is_refused(tmp_path: Path) -> None:
    plant(options("tiny"), tmp_path / "loud", device="cpu")
    with pytest.raises(ConfigError, match="no layer of this model is quiet"):
        sync.measure(EngineConfig(model=tmp_path / "loud", predictor="learned"))
