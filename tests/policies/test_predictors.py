"""The predictor kinds against the float64 oracle: scores, native arrays, masks and quality."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.oracle import Oracle, Trace
from support.predictors import random_layers, random_oracle, spec_of, view_of

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.learned import Learned
from hotcold.policies.predictor.low_rank import LowRank, components, probit
from hotcold.runtime.engine.audit import PredictionAudit
from hotcold.runtime.predictors.predictor import Predictor, native_layers
from hotcold.runtime.predictors.predictor_file import FILE_NAME, save_predictors
from hotcold.runtime.profiles.profile import ActivationProfile

ORACLE = random_oracle()
SPEC = spec_of(ORACLE)
EMBEDDED = Path(__file__).parents[2] / "runtime" / "embedded"
TOKENS = [1, *range(7, 30)]


@cache
def embedded() -> tuple[Oracle, ActivationProfile]:
    return Oracle.load(EMBEDDED), ActivationProfile.load(EMBEDDED / "activations.npz")


def learned(folder: Path, **settings: Any) -> Learned:
    layers = random_layers(SPEC, dtype="float16")
    save_predictors(folder / FILE_NAME, layers, {"layers.0.density": "0.5"})
    predictor = Learned(path=str(folder), **settings)
    predictor.prepare(view_of(ORACLE), None)
    return predictor


def low_rank(profile: ActivationProfile | None = None, **settings: Any) -> LowRank:
    predictor = LowRank(**settings)
    predictor.prepare(view_of(ORACLE), profile)
    return predictor


def proposals(predictor: Predictor) -> Any:
    """A predictor as the oracle's mask function, fed what its native form asks for."""

    def propose(layer: int, x_TD: Any, h_TD: Any) -> Any:
        native = predictor.native(layer)
        source = x_TD if native.input == "normed" else h_TD
        scores_TN = predictor.scores(source.astype(np.float32), layer)
        assert scores_TN.dtype == np.float32
        return scores_TN >= np.float32(native.threshold)

    return propose


def audit(trace: Trace) -> PredictionAudit:
    return PredictionAudit.of(trace.masks_LTN, trace.gates_LTN > 0)


@pytest.mark.parametrize("kind", ["learned", "low-rank"])
def test_scores_and_native_agree_with_float64(kind: str, tmp_path: Path) -> None:
    predictor = learned(tmp_path) if kind == "learned" else low_rank()
    x_BD = np.random.default_rng(3).standard_normal((9, SPEC.d_model)).astype(np.float32)
    for index, layer in enumerate(native_layers(predictor, SPEC)):
        assert layer.fc1 is not None and layer.fc2 is not None and layer.bias_N is not None
        assert layer.relu == (kind == "learned")
        hidden = x_BD.astype(float) @ layer.fc1.astype(float).T
        hidden = np.maximum(hidden, 0) if layer.relu else hidden
        want = hidden @ layer.fc2.astype(float).T + layer.bias_N
        np.testing.assert_allclose(predictor.scores(x_BD, index), want, atol=1e-4)
        np.testing.assert_array_equal(layer.scores(x_BD), predictor.scores(x_BD, index))


def test_exact_scores_are_the_gate() -> None:
    predictor = Exact()
    predictor.prepare(view_of(ORACLE), None)
    dense = ORACLE.forward(TOKENS)
    trace = ORACLE.forward(TOKENS, propose=proposals(predictor))
    np.testing.assert_allclose(trace.logits_TV, dense.logits_TV, atol=1e-5)
    assert audit(trace).recall == audit(trace).precision == 1.0
    x_BD = dense.inputs_LTD[1].astype(np.float32)
    np.testing.assert_allclose(predictor.scores(x_BD, 1), dense.gates_LTN[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["learned", "learned on the residual", "low-rank"])
def test_output_is_the_dense_model_with_unpredicted_neurons_zeroed(
    kind: str, tmp_path: Path
) -> None:
    if kind == "low-rank":
        predictor: Predictor = low_rank(rank=6, margin=0.5)
    else:
        predictor = learned(tmp_path, input="residual" if "residual" in kind else "")
    trace = ORACLE.forward(TOKENS, propose=proposals(predictor))
    assert 0.1 < audit(trace).density < 0.95
    h_TD = trace.residuals_LTD[-1]
    fired_TN = np.maximum(trace.gates_LTN[-1], 0) * trace.masks_LTN[-1]
    up_TN = trace.inputs_LTD[-1] @ ORACLE.layer(1, "mlp.up_proj").T
    h_TD = h_TD + (fired_TN * up_TN) @ ORACLE.layer(1, "mlp.down_proj").T
    x_TD = h_TD / np.sqrt((h_TD**2).mean(axis=1, keepdims=True) + SPEC.norm_eps)
    want = (
        x_TD * ORACLE.tensors["model.norm.weight"] @ ORACLE.tensors["model.embed_tokens.weight"].T
    )
    np.testing.assert_allclose(trace.logits_TV, want, atol=1e-10)
    replayed = ORACLE.forward(TOKENS, masks_LTN=trace.masks_LTN)
    np.testing.assert_array_equal(replayed.logits_TV, trace.logits_TV)
    assert np.abs(trace.logits_TV - ORACLE.forward(TOKENS).logits_TV).max() > 1e-3


def test_learned_settings_override_the_file(tmp_path: Path) -> None:
    plain = learned(tmp_path)
    assert [plain.native(i).threshold for i in range(2)] == [0.0, 0.25]
    assert (plain.density(0), plain.density(1)) == (0.5, None)
    changed = learned(tmp_path, threshold=-1.0, input="residual")
    assert {changed.native(i).threshold for i in range(2)} == {-1.0}
    assert {changed.native(i).input for i in range(2)} == {"residual"}
    assert changed.density(0) is None


def test_learned_takes_the_bundles_file(tmp_path: Path) -> None:
    learned(tmp_path)
    view = view_of(ORACLE)
    with pytest.raises(CheckpointError, match="bundle has none"):
        Learned().prepare(view)
    predictor = Learned()
    predictor.prepare(type(view)(view.spec, view.store, tmp_path / FILE_NAME))
    assert predictor.native(1).bias_N is not None


def test_low_rank_of_full_rank_is_the_gate() -> None:
    predictor = low_rank(rank=SPEC.d_model, margin=0.0)
    dense = ORACLE.forward(TOKENS)
    for layer in range(2):
        scores = predictor.scores(dense.inputs_LTD[layer].astype(np.float32), layer)
        np.testing.assert_allclose(scores, dense.gates_LTN[layer], atol=0.02)  # float16 factors


def test_low_rank_defaults_and_dtypes() -> None:
    assert low_rank().native(0).fc1.shape == (8, 24)  # type: ignore[union-attr]
    half = low_rank().native(0).fc2
    assert half is not None and half.dtype == np.float16
    predictor = LowRank()
    predictor.prepare(view_of(ORACLE, "float32"), None)
    full = predictor.native(0).fc2
    assert full is not None and full.dtype == np.float32


def test_low_rank_is_the_same_for_every_thread_count() -> None:
    threads = torch.get_num_threads()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            found.append(low_rank(rank=6).native(1))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
    np.testing.assert_array_equal(found[0].fc1, found[1].fc1)
    np.testing.assert_array_equal(found[0].bias_N, found[1].bias_N)


def test_a_norm_weight_of_zero_is_harmless() -> None:
    oracle = Oracle(ORACLE.config, dict(ORACLE.tensors))
    weight = oracle.layer(0, "post_attention_layernorm").copy()
    weight[3] = 0.0
    oracle.tensors["model.layers.0.post_attention_layernorm.weight"] = weight
    predictor = LowRank(rank=24, margin=0.0)
    predictor.prepare(view_of(oracle), None)
    native_layers(predictor, SPEC)
    trace = oracle.forward(TOKENS)
    scores = predictor.scores(trace.inputs_LTD[0].astype(np.float32), 0)
    np.testing.assert_allclose(scores, trace.gates_LTN[0], atol=0.02)


def test_components_by_iteration_match_the_exact_ones() -> None:
    rng = np.random.default_rng(5)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    gram = torch.from_numpy(basis @ np.diag(0.7 ** np.arange(60)) @ basis.T)
    exact, near = components(gram, 8), components(gram, 8, exact=False)
    np.testing.assert_allclose((near.T @ near).numpy(), np.eye(8), atol=1e-9)
    np.testing.assert_allclose((exact @ exact.T).numpy(), (near @ near.T).numpy(), atol=1e-5)


def test_probit() -> None:
    found = probit(np.array([0.0, 0.5, 0.8413447460685429, 1.0]))
    np.testing.assert_allclose(found[1:3], [0.0, 1.0], atol=1e-9)
    assert np.isfinite(found).all() and found[0] < -4 and found[3] > 4


def test_bad_settings() -> None:
    for make in (
        lambda: LowRank(rank=-1),
        lambda: LowRank(margin=float("nan")),
        lambda: low_rank(rank=25),
        lambda: Learned(threshold=float("inf")),
        lambda: Learned(input="raw"),
        lambda: Exact(by="nobody"),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(CheckpointError, match="profile this model"):
        low_rank(ActivationProfile(np.ones((2, 3), np.int64), 1))


@pytest.mark.parametrize("predictor", [Exact(), Learned(), LowRank()])
def test_unprepared(predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="not prepared"):
        predictor.scores(np.zeros((1, 24), np.float32), 0)


def test_low_rank_on_the_embedded_model() -> None:
    """More rank and more margin find more; the density it expects is about the one it has."""
    oracle, profile = embedded()
    # The model's own words: real enough for its activations to be of the usual kind.
    tokens = oracle.greedy([1], 40).ids
    found = {}
    for rank, margin in ((80, 0.0), (80, 1.5), (160, 1.5)):
        predictor = LowRank(rank=rank, margin=margin)
        predictor.prepare(view_of(oracle), profile)
        found[rank, margin] = audit(oracle.forward([1, *tokens], propose=proposals(predictor)))
        expected = np.mean([predictor.density(layer) for layer in range(8)])
        assert expected == pytest.approx(found[rank, margin].density, abs=0.12)
    assert found[80, 0.0].recall < 0.75 < 0.9 < found[80, 1.5].recall < found[160, 1.5].recall
    assert found[160, 1.5].density < found[80, 1.5].density < 0.6
    assert found[80, 0.0].density < 0.12
