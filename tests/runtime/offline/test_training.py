"""Training: sizes, fits, thresholds and files, on models small enough to check by hand."""

import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.native.errors import BudgetError, CheckpointError, ConfigError
from hotcold.policies.predictor.learned import Learned
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model
from hotcold.runtime.offline.evaluation.evaluate import evaluate_all
from hotcold.runtime.offline.training.capture import capture_inputs
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.offline.training.fit import Fitted
from hotcold.runtime.offline.training.quality import DEVIATIONS, calibrate, measure
from hotcold.runtime.offline.training.settings import WORK, FitSettings, TrainSettings
from hotcold.runtime.offline.training.train import train_predictors
from hotcold.runtime.offline.training.widths import (
    WidthSearch,
    model_parameters,
    parameters,
    start_widths,
)
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.predictors.predictor import ModelView
from hotcold.runtime.predictors.predictor_file import load_predictors
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.weights import WeightStore

SHAPE = TinyLlama(d=32, layers=3, neurons=48, heads=4, kv_heads=2)
QUICK = TrainSettings(
    share=0.5, start=0.4, perplexity=0, rounds=1, context=32, workers=2, fit=FitSettings(epochs=6)
)


def windows(count: int, seed: int, length: int = 32) -> list[list[int]]:
    return np.random.default_rng(seed).integers(3, 300, (count, length)).tolist()


def perplexity_of(logits: list[Any], texts: list[list[int]]) -> float:
    total = 0.0
    for logits_TV, window in zip(logits, texts, strict=True):
        log_p = torch.log_softmax(torch.from_numpy(logits_TV), dim=-1)
        total -= sum(float(log_p[i, target]) for i, target in enumerate(window[1:]))
    return float(np.exp(total / sum(len(window) - 1 for window in texts)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, SHAPE)
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return resolve_model(folder)


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> DenseModel:
    with WeightStore.open(bundle) as store:
        return DenseModel(bundle, store, 64)


@pytest.fixture(scope="module")
def profile(folder: Path, bundle: Bundle) -> ActivationProfile:
    oracle = Oracle.load(folder)
    counts = sum(oracle.forward(window).counts_LN for window in windows(20, 1))
    return ActivationProfile(np.asarray(counts, np.int64), 20 * 32, bundle.checksum)


def test_the_dense_model_is_the_oracle(folder: Path, model: DenseModel) -> None:
    pair = windows(2, 0, 50)
    seen: dict[int, Any] = {}
    hidden = model.hidden(torch.tensor(pair), visit=lambda i, x, h: seen.update({i: (x, h)}))
    logits = model.logits(hidden).view(2, 50, -1).numpy()
    for row, window in enumerate(pair):
        trace = Oracle.load(folder).forward(window)
        np.testing.assert_allclose(logits[row], trace.logits_TV, atol=1e-3)
        for layer in range(3):
            x, h = (part.view(2, 50, -1)[row].numpy() for part in seen[layer])
            np.testing.assert_allclose(x, trace.inputs_LTD[layer], atol=1e-3)
            np.testing.assert_allclose(h, trace.residuals_LTD[layer], atol=1e-3)


def test_a_mask_silences_neurons(folder: Path, model: DenseModel) -> None:
    window = windows(1, 2, 40)[0]
    mask = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden = model.hidden(torch.tensor([window]), propose=lambda i, x, h: mask[i])
    expected = Oracle.load(folder).forward(window, masks_LTN=mask.numpy())
    np.testing.assert_allclose(model.logits(hidden).numpy(), expected.logits_TV, atol=1e-3)


def test_an_interrupted_capture_goes_on(model: DenseModel, tmp_path: Path) -> None:
    texts = windows(300, 3)
    whole = capture_inputs(model, texts, tmp_path / "a", "one", 1)
    ran: list[int] = []

    def stop(done: int, share: float) -> None:
        ran.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_inputs(model, texts, tmp_path / "b", "one", 1, stop)
    assert 0 < ran[0] < 300 * 32
    kept = np.memmap(tmp_path / "b" / "x.1.f16", np.float16, "r+")
    kept[0] = 77  # what was done is not done again
    kept.flush()
    rest = capture_inputs(model, texts, tmp_path / "b", "one", 1)
    assert rest[1][0, 0] == 77
    np.testing.assert_array_equal(rest[2], whole[2])
    other = capture_inputs(model, texts, tmp_path / "b", "two", 1)
    assert other[1][0, 0] == whole[1][0, 0], "another job's inputs were kept"


def test_sparse_and_skewed_layers_get_less(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    even = rng.integers(380, 420, 48)
    skewed = np.sort(rng.pareto(1.0, 48))[::-1]
    skewed = (skewed / skewed.sum() * even.sum()).clip(0, 999).astype(np.int64)
    counts = np.stack([even, even // 4, skewed])
    spec = bundle.spec
    widths = start_widths(spec, ActivationProfile(counts, 1000), 0.6)
    assert widths[0] > widths[1], "a sparser layer"
    assert widths[0] > widths[2], "a more skewed layer"
    total = sum(parameters(spec, width) for width in widths)
    assert total <= 0.6 * model_parameters(spec)


def test_model_parameters_count_the_checkpoint(folder: Path, bundle: Bundle) -> None:
    tensors = Oracle.load(folder).tensors
    assert model_parameters(bundle.spec) == sum(tensor.size for tensor in tensors.values())


@pytest.mark.parametrize(
    ("needs", "best"), [({64: 0.3, 80: 0.24}, 80), ({64: 0.2, 48: 0.24}, 48), ({64: 0.245}, 64)]
)
def test_the_search_grows_shrinks_and_stops(needs: dict[int, float], best: int) -> None:
    search = WidthSearch(64, 128, 0.25, 2)
    for width in search:
        search.tell(width, needs[width])
    assert (set(search.tried), search.best) == (set(needs), best)


def test_thresholds_reach_their_recall(folder: Path, model: DenseModel) -> None:
    """On the inputs of the cut model: recounted here with the oracle."""
    generator = torch.Generator().manual_seed(1)
    layers = [
        Fitted(
            torch.randn(8, 32, generator=generator),
            torch.randn(48, 8, generator=generator),
            torch.zeros(48),
        )
        for _ in range(3)
    ]
    texts = windows(6, 4)
    calibrations, perplexity = calibrate(model, layers, texts, 0.9, workers=2)
    limits = [next(p.threshold for p in points if p.recall == 0.9) for points in calibrations]

    def propose(index: int, x_TD: Any, _residual: Any) -> Any:
        return layers[index].scores(torch.from_numpy(x_TD).float()).numpy() >= limits[index]

    traces = [Oracle.load(folder).forward(window, propose=propose) for window in texts]
    for layer in range(3):
        fired = np.stack([trace.gates_LTN[layer] > 0 for trace in traces])
        kept = np.stack([trace.masks_LTN[layer] for trace in traces])
        point = next(p for p in calibrations[layer] if p.recall == 0.9)
        both_G, fired_G = (kept & fired).sum((1, 2)), fired.sum((1, 2))
        recall = both_G.sum() / fired_G.sum()
        spread = np.sqrt(np.square(both_G - recall * fired_G).sum() / 5) / fired_G.mean()
        assert 0.9 <= recall - DEVIATIONS * spread < 0.91
        assert kept.mean() == pytest.approx(point.density, abs=0.003)
    found = measure(model, layers, limits, texts, workers=2)
    assert found.perplexity == pytest.approx(perplexity, rel=1e-4)
    dense = [Oracle.load(folder).forward(window).logits_TV for window in texts]
    assert found.perplexity_dense == pytest.approx(perplexity_of(dense, texts), rel=1e-4)
    assert found.ratio != pytest.approx(1, abs=5e-4)
    assert 0.9 < found.audit.recall - 2 * found.recall_error < found.audit.recall < 0.96
    assert all(0 < layer.cosine_loss < 1 for layer in found.layers)


def test_another_text_reaches_the_recall(model: DenseModel) -> None:
    """Texts on subjects of their own, each a few words: what one says of the next is its spread."""
    rng = np.random.default_rng(0)

    def text(subjects: int) -> list[list[int]]:
        words = rng.integers(3, 300, (subjects, 6))
        return [rng.choice(words[i // 2], 32).tolist() for i in range(2 * subjects)]

    generator = torch.Generator().manual_seed(1)
    shapes = ((8, 32), (48, 8))
    layers = [
        Fitted(*(torch.randn(s, generator=generator) for s in shapes), torch.zeros(48))
        for _ in range(3)
    ]
    reached = []
    for _ in range(6):
        points, _ = calibrate(model, layers, text(8), 0.9)
        limits = [next(p.threshold for p in of if p.recall == 0.9) for of in points]
        found = [measure(model, layers, limits, text(8)).audit.recall for _ in range(4)]
        reached += [recall >= 0.9 for recall in found]
    assert np.mean(reached) > 0.95


def test_a_silent_layer_is_never_proposed(bundle: Bundle, model: DenseModel) -> None:
    silent = DenseModel.__new__(DenseModel)
    silent.__dict__.update(model.__dict__)
    silent.layers = [dict(layer) for layer in model.layers]
    silent.layers[1]["gate"] = torch.zeros_like(silent.layers[1]["gate"])
    layers = [Fitted(torch.ones(8, 32), torch.ones(48, 8), torch.zeros(48))] * 3
    calibrations, _ = calibrate(silent, layers, windows(2, 0), 0.95)
    assert {point.density for point in calibrations[1]} == {0.0}
    found = measure(silent, layers, [c[0].threshold for c in calibrations], windows(2, 0))
    assert found.layers[1].audit.proposed == 0
    assert found.layers[1].audit.recall == 1


def test_training_ends_in_a_file_the_engine_reads(
    bundle: Bundle, profile: ActivationProfile, tmp_path: Path
) -> None:
    said: list[str] = []
    parts = windows(300, 5), windows(20, 6), windows(20, 7)
    trained = train_predictors(bundle, profile, *parts, tmp_path, QUICK, said.append)
    assert trained.quality.audit.recall == pytest.approx(0.95, abs=0.02)
    assert trained.quality.audit.density < 0.9, "learned nothing: it proposes nearly all"
    assert trained.parameter_share <= 0.5
    assert not (tmp_path / WORK).exists()
    found = load_predictors(tmp_path, bundle.spec)
    assert [layer.threshold for layer in found.layers] == [
        layer.threshold for layer in trained.layers
    ]
    with WeightStore.open(bundle) as store:
        view = ModelView.of(bundle, store)
        few, many = Learned(str(tmp_path), recall=0.85), Learned(str(tmp_path), recall=0.99)
        few.prepare(view)
        many.prepare(view)
        assert few.native(0).threshold > found.layers[0].threshold > many.native(0).threshold
        assert (few.density(0) or 0) < (many.density(0) or 0)
        with pytest.raises(CheckpointError, match=r"0\.8 to 0\.995"):
            Learned(str(tmp_path), recall=0.5).prepare(view)


def test_finished_layers_are_not_trained_again(
    bundle: Bundle, profile: ActivationProfile, tmp_path: Path
) -> None:
    parts = windows(40, 5), windows(5, 6), windows(5, 7)
    quick = TrainSettings(**{**QUICK.__dict__, "workers": 1, "fit": FitSettings(epochs=1)})

    def stop(text: str) -> None:
        if text.startswith("layer 1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_predictors(bundle, profile, *parts, tmp_path, quick, stop)
    said: list[str] = []
    train_predictors(bundle, profile, *parts, tmp_path, quick, said.append)
    assert [text for text in said if "done before" in text][0] == "layer 0: done before"
    fresh: list[str] = []
    once = train_predictors(bundle, profile, *parts, tmp_path / "other", quick, fresh.append)
    assert not any("done before" in text for text in fresh)
    for one, other in zip(once.layers, load_predictors(tmp_path, bundle.spec).layers, strict=True):
        np.testing.assert_array_equal(one.fc1, other.fc1)
        np.testing.assert_array_equal(one.fc2, other.fc2)
        assert one.threshold == other.threshold


def test_lookahead_takes_the_input_of_an_earlier_layer(
    folder: Path, bundle: Bundle, profile: ActivationProfile, tmp_path: Path
) -> None:
    """From training to tokens: those of the dense model with the unpredicted zeroed."""
    settings = TrainSettings(**{**QUICK.__dict__, "lookahead": 1, "width": 16})
    parts = windows(60, 5), windows(5, 6), windows(5, 7)
    trained = train_predictors(bundle, profile, *parts, tmp_path, settings)
    assert load_predictors(tmp_path, bundle.spec).lookahead == 1
    assert trained.quality.audit.recall > 0.9
    early = EngineConfig(model=folder, predictor=tmp_path, schedule="lookahead", context=64)
    prepared = prepare_model(early)
    plan = solve(prepared)
    with LocalSession(deploy(prepared, plan)) as session:
        for window in parts[2]:
            logits, masks_TLN = session.logits(window)
            masks_LTN = masks_TLN.transpose(1, 0, 2)
            expected = Oracle.load(folder).forward(window, masks_LTN=masks_LTN)
            np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    found = evaluate_all([early], parts[2], 0)[0]
    assert found.audit.recall == pytest.approx(trained.quality.audit.recall, abs=2e-3)
    assert found.ratio == pytest.approx(trained.quality.ratio, rel=1e-3)
    for other in (
        replace(early, schedule="selective"),
        replace(early, settings={"schedule.depth": "2"}),
    ):
        with pytest.raises(ConfigError, match=r"trained to predict 1 layer\(s\) early, schedule"):
            deploy(prepare_model(other), plan)
    with pytest.raises(ConfigError, match="lookahead 3"):
        train_predictors(
            bundle, profile, *parts, tmp_path, TrainSettings(**{**QUICK.__dict__, "lookahead": 3})
        )


def test_a_disk_without_room_for_the_inputs(tmp_path: Path) -> None:
    """Refused before the first window is run; a mapped file would end the process by SIGBUS."""
    folder = tmp_path / ".training"
    model = SimpleNamespace(spec=SimpleNamespace(n_layers=2, d_model=32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(BudgetError, match=r"inputs of 2 layers for 8192 tokens.*--out") as no:
            capture_inputs(model, [[1] * 64] * 128, folder, "x", 1)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(folder) in str(no.value) and not list(folder.glob("x.*"))
