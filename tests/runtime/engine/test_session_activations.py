"""Models of every activation through the loops: tokens, counts, audit, window; the torch oracle."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.activations import (
    ACTIVATIONS,
    THRESHOLD,
    factor,
    fires,
    oracle,
    read_as,
    threshold_of,
)
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.predictors import view_of

from hotcold.native.errors import CheckpointError
from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.sign import Sign
from hotcold.policies.predictor.window import Window
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.architectures.limits import check_spec
from hotcold.runtime.model.checkpoints.bundle import open_bundle, resolve_model
from hotcold.runtime.model.checkpoints.convert import header_digest
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.profiling.counting import count_unit
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.predictors.predictor_forms import WindowLayer
from hotcold.runtime.weights.weights import WeightStore

IDS = np.random.default_rng(0).integers(4, 190, 45).tolist()
MODEL = TinyLlama(d=40, layers=3, neurons=67, heads=4, kv_heads=2)
Made = Callable[[str, Any], Path]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Checkpoints that are read as if they named an activation."""

    def write(name: str, shape: TinyLlama | TinyOpt) -> Path:
        read_as(monkeypatch, name)
        folder = tmp_path / "model"
        write_llama(folder, shape) if isinstance(shape, TinyLlama) else write_opt(folder, shape)
        return folder

    yield write


def session(model: Path, **options: Any) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, **options))
    deployment = deploy(prepared, solve(prepared))
    return LocalSession(replace(deployment, audit_every=1 if prepared.predicts else 0))


@pytest.mark.parametrize("by", ["predictor", "executors"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_logits_and_counts_are_the_oracles(made: Made, name: str, by: str) -> None:
    folder = made(name, MODEL)
    model = oracle(folder, name)
    trace = model.forward(IDS)
    other = oracle(folder, "relu2" if name == "relu" else "relu").forward(IDS)
    assert np.abs(trace.logits_TV - other.logits_TV).max() > 5e-3, "the activation shows nothing"
    with session(folder, predictor=Exact(by=by), vram="200KiB") as local:
        logits, masks_TLN = local.logits(IDS)
        fired = sum(local.segment.actor_state(a).up_down_rows for a in ("gpu", "cpu"))
    np.testing.assert_allclose(logits, trace.logits_TV, atol=1e-3, rtol=0)
    expected_LTN = model.fires(trace.gates_LTN)
    assert fired == pytest.approx(expected_LTN.sum(), abs=3)
    if by == "predictor":  # proposes what fires and nothing else
        clear = np.abs(trace.gates_LTN - threshold_of(name)) > 1e-4
        np.testing.assert_array_equal(masks_TLN.transpose(1, 0, 2)[clear], expected_LTN[clear])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_a_predictor_misses_is_what_would_have_fired(made: Made, name: str) -> None:
    folder = made(name, MODEL)
    model = oracle(folder, name)
    settings = {"predictor.rank": "6", "predictor.margin": "0"}
    with session(folder, predictor="low-rank", settings=settings) as local:
        logits, masks_TLN = local.logits(IDS)
        states = [local.segment.actor_state(actor) for actor in ("gpu", "cpu")]
    trace = model.forward(IDS, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, trace.logits_TV, atol=1e-3, rtol=0)
    missed = (model.fires(trace.gates_LTN) & ~trace.masks_LTN).sum()
    assert missed > 100
    assert sum(state.audit_missed for state in states) == pytest.approx(missed, abs=2)


def test_predictors_without_training_reckon_with_the_threshold(made: Made) -> None:
    folder = made("fatrelu", MODEL)
    settings = {"predictor.rank": str(MODEL.d), "predictor.margin": "0"}  # nothing is left out
    with session(folder, predictor="low-rank", settings=settings) as local:
        _, masks_TLN = local.logits(IDS)
    gates_LTN = oracle(folder, "fatrelu").forward(IDS).gates_LTN
    clear = np.abs(gates_LTN - THRESHOLD) > 1e-3
    found_LTN, fires_LTN = masks_TLN.transpose(1, 0, 2), gates_LTN >= THRESHOLD
    np.testing.assert_array_equal(found_LTN[clear], fires_LTN[clear])
    without = view_of(oracle(folder, "fatrelu"))
    fat = replace(without.spec, activation="fatrelu", activation_threshold=THRESHOLD)
    biases = []
    for one in (replace(without, spec=fat), without):
        sign = Sign(margin=0.5)
        sign.prepare(one)
        biases.append(sign.native(0).bias_N)
    np.testing.assert_allclose(biases[0], biases[1] - THRESHOLD, atol=1e-6)


@pytest.mark.parametrize("max_batch", [1, 32])
@pytest.mark.parametrize("name", ["relu", "fatrelu"])
def test_a_window_remembers_what_fired(made: Made, name: str, max_batch: int) -> None:
    folder = made(name, MODEL)
    model, window = oracle(folder, name), Window(k=2, probe_every=4, recall=0)
    with session(folder, predictor=window, max_batch=max_batch) as local:
        logits, masks_TLN = local.logits(IDS)
    trace = model.forward(IDS, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, trace.logits_TV, atol=1e-3, rtol=0)
    native = WindowLayer(2, 4, None, threshold=1.0)
    for layer, gates_TN in enumerate(trace.gates_LTN):
        expected_TN = native.scores_of(model.fires(gates_TN)) >= 1
        np.testing.assert_array_equal(masks_TLN[:, layer], expected_TN)


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, MODEL) for name in ACTIVATIONS]
    + [(name, TinyOpt()) for name in ACTIVATIONS if name != "relu both"],  # which has an up row
)
def test_the_torch_model_computes_the_same(made: Made, name: str, shape: Any) -> None:
    """And counts what fires; against the native loop, which the tests above hold to numpy."""
    import torch

    bundle = resolve_model(made(name, shape))
    assert bundle.spec.activation == name
    with WeightStore.open(bundle) as store:
        model = DenseModel(bundle, store, len(IDS))
        bits = np.zeros((len(IDS), bundle.spec.n_layers, -(-bundle.spec.n_neurons // 8)), np.uint8)
        tally = count_unit(model, [IDS], 1, bits)
        gates: list[Any] = []

        def visit(layer: int, x_RD: Any, _h_RD: Any) -> None:
            gates.append(model.gates(layer, x_RD).numpy())

        with torch.inference_mode():
            expected = model.logits(model.hidden(torch.tensor([IDS]), visit)).numpy()
    threshold = threshold_of(name)
    for layer, gates_TN in enumerate(gates):
        fired_TN = fires(name, gates_TN, threshold)
        np.testing.assert_array_equal(tally.counts_LN[layer], fired_TN.sum(axis=0))
        sums_N = factor(name, gates_TN.astype(np.float64), None, threshold).sum(axis=0)
        np.testing.assert_allclose(tally.sums_LN[layer], sums_N, rtol=1e-4, atol=1e-4)
    with session(bundle.path, predictor="exact") as local:
        logits, _ = local.logits(IDS)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


def test_a_spec_says_what_does_not_go_together() -> None:
    spec = resolve_model(None).spec
    for changes, match in (
        (
            {"activation": "softplus"},
            "activation is 'softplus', it must be one of relu, relu2, fatrelu",
        ),
        ({"activation_threshold": 0.1}, "activation_threshold is 0.1, of relu it must be 0"),
        ({"activation": "fatrelu"}, "is 0.0, of fatrelu it must be above 0 and at most 1e9"),
        ({"activation": "fatrelu", "activation_threshold": float("nan")}, "is nan, of fatrelu"),
        ({"activation": "fatrelu", "activation_threshold": -1}, "is -1, of fatrelu"),
        ({"activation": "fatrelu", "activation_threshold": True}, "is True, of fatrelu"),
        ({"activation": "relu both", "gated": False}, "'relu both' needs a gated"),
        ({"gated": 1}, "gated is 1, it must be true or false"),
        ({"biases": True}, "biases are not supported in a gated"),
    ):
        with pytest.raises(ValueError, match=match):
            check_spec(replace(spec, **changes))  # type: ignore[arg-type]
    fat = replace(spec, activation="fatrelu", activation_threshold=0.01)
    check_spec(fat)
    assert ModelSpec.from_json(json.loads(json.dumps(fat.to_json()))) == fat
    assert fat.least_firing == float(np.float32(0.01))
    assert spec.least_firing == float(np.nextafter(np.float32(0), np.float32(1)))
    assert {"gated", "activation", "activation_threshold"}.isdisjoint(spec.to_json())


def test_a_bundle_of_the_version_before_is_refused(tmp_path: Path) -> None:
    """Its spec says "ffn"; a bundle in the cache has another name by now and is made again."""
    path = resolve_model(write_opt(tmp_path / "model", TinyOpt())).path
    header = json.loads((path / "bundle.json").read_text())
    del header["spec"]["gated"]
    header["spec"]["ffn"] = "relu"
    header["header_sha256"] = header_digest(header)
    (path / "bundle.json").write_text(json.dumps(header))
    with pytest.raises(CheckpointError, match="knows no ffn of a model.*; convert it again"):
        open_bundle(path)
