"""Planted models: the statistics asked for, valid checkpoints, nothing half-written."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.oracle import Oracle, Trace

from hotcold.policies.placement.greedy import Greedy
from hotcold.runtime.config import EngineConfig, Sampling
from hotcold.runtime.deployment import deploy, prepare_model, solve
from hotcold.runtime.errors import BackendError, BudgetError, ConfigError
from hotcold.runtime.formats.bundle import open_bundle, resolve_model
from hotcold.runtime.formats.digest import file_digest
from hotcold.runtime.formats.predictors import load_predictors
from hotcold.runtime.plant import making, streams
from hotcold.runtime.plant.making import PlantOptions, PlantReport, plant
from hotcold.runtime.plant.overfire import plan_noise, quantile
from hotcold.runtime.plant.shapes import SHAPES
from hotcold.runtime.plant.statistics import (
    CAP,
    Statistics,
    firing_probabilities,
    share_holding,
)
from hotcold.runtime.plant.streams import BlockWriter
from hotcold.runtime.plant.tokens import byte_tokenizer
from hotcold.runtime.profile import ActivationProfile
from hotcold.runtime.session import LocalSession
from hotcold.runtime.tokenizer import Tokenizer

UNSEEN = 1250  # tokens that statistics are measured on


def options(shape: str = "small", **more: Any) -> PlantOptions:
    return PlantOptions(shape, **{"layers": 2, "tokens": 1024, "seed": 7, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


@pytest.fixture(scope="module")
def noisy(folder: Path) -> PlantReport:
    """A model with a predictor that misses and over-fires, as a Hugging Face folder."""
    asked = options(recall=0.95, precision=0.6)
    return plant(asked, folder / "noisy", hugging_face=True, device="cpu")


@pytest.fixture(scope="module")
def exact(folder: Path) -> PlantReport:
    return plant(options("tiny"), folder / "exact", hugging_face=True, device="cpu")


def walk(oracle: Oracle, count: int) -> list[int]:
    """Tokens of the walk, read from the head: the row of a token is its predecessor's vector."""
    embed = oracle.tensors["model.embed_tokens.weight"][:, 1:]
    head = oracle.tensors["lm_head.weight"][:, 1:]
    following = np.argmax(embed @ head.T, axis=1)
    ids = [3]
    while len(ids) < count:
        ids.append(int(following[ids[-1]]))
    return ids


def traces(oracle: Oracle, count: int = UNSEEN, length: int = 250) -> Iterator[Trace]:
    ids = walk(oracle, count)
    for begin in range(0, count, length):
        yield oracle.forward(ids[begin : begin + length])


def session(model: Path, **more: Any) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, **more))
    return LocalSession(deploy(prepared, solve(prepared, Greedy())))


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
        {"dtype": "int8"},
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
    oracle = Oracle.load(noisy.path)
    layers = load_predictors(noisy.path, noisy.spec).layers
    fired_LN = np.zeros((noisy.spec.n_layers, noisy.spec.n_neurons), np.int64)
    proposed = hit = 0
    for trace in traces(oracle):
        fires_LTN = trace.gates_LTN > 0
        fired_LN += fires_LTN.sum(axis=1)
        for index, layer in enumerate(layers):
            scores = layer.scores(trace.inputs_LTD[index].astype(np.float32))
            proposes = scores >= layer.threshold
            proposed += proposes.sum()
            hit += (proposes & fires_LTN[index]).sum()
    profile = ActivationProfile(fired_LN, UNSEEN)
    assert fired_LN.mean() / UNSEEN == pytest.approx(0.12, rel=0.04)
    assert profile.share_for(0.8).mean() == pytest.approx(0.43, rel=0.04)
    assert hit / fired_LN.sum() == pytest.approx(0.95, rel=0.02)
    assert hit / proposed == pytest.approx(0.6, rel=0.03)
    assert (noisy.recall, noisy.precision) == pytest.approx((0.95, 0.6), rel=0.02)
    written = ActivationProfile.load(noisy.path / "activations.npz")
    agreement = np.corrcoef(written.probabilities_LN.reshape(-1), fired_LN.reshape(-1))
    assert agreement[0, 1] > 0.98


def test_the_exact_predictor_is_exact(exact: PlantReport) -> None:
    layers = load_predictors(exact.path, exact.spec).layers
    fired = missed = wrong = 0
    for trace in traces(Oracle.load(exact.path), 500):
        for index, layer in enumerate(layers):
            scores = layer.scores(trace.inputs_LTD[index].astype(np.float32))
            fires, proposes = trace.gates_LTN[index] > 0, scores >= layer.threshold
            fired += fires.sum()
            missed += (fires & ~proposes).sum()
            wrong += (proposes & ~fires).sum()
    assert missed == 0
    assert wrong < 0.03 * fired


def overlap(trace: Trace) -> float:
    """How much of what fires for a token also fires for the next."""
    fires = trace.gates_LTN > 0
    both = (fires[:, 1:] & fires[:, :-1]).sum()
    return float(both / fires[:, 1:].sum())


def test_correlation_makes_neighbours_alike(folder: Path, noisy: PlantReport) -> None:
    asked = options(correlation=0.9, dtype="bfloat16")
    alike = plant(asked, folder / "alike", hugging_face=True, device="cpu")
    assert alike.density == pytest.approx(0.12, rel=0.02)
    [near] = traces(Oracle.load(alike.path), 250)
    [far] = traces(Oracle.load(noisy.path), 250)
    assert overlap(near) > overlap(far) + 0.15


def test_drift_moves_the_hot_neurons(folder: Path, noisy: PlantReport) -> None:
    drifting = plant(options(drift=0.5), folder / "drift", hugging_face=True, device="cpu")

    def likeness(path: Path) -> float:
        oracle = Oracle.load(path)
        ids = walk(oracle, UNSEEN)
        early, late = (
            oracle.forward(part).counts_LN.reshape(-1) for part in (ids[:250], ids[-250:])
        )
        return float(np.corrcoef(early, late)[0, 1])

    assert likeness(drifting.path) < likeness(noisy.path) - 0.1


# ---- valid checkpoints ---------------------------------------------------------------------------
def test_bundle_and_checkpoint_are_the_same_model(exact: PlantReport, tmp_path: Path) -> None:
    made = plant(options("tiny"), tmp_path / "bundle", device="cpu")
    bundle = open_bundle(made.path)
    assert bundle.checksum == made.checksum == resolve_model(exact.path, cache=tmp_path).checksum
    assert (made.path / "verified.json").is_file()
    assert bundle.profile_path is not None
    assert ActivationProfile.load(bundle.profile_path).model == made.checksum
    assert (made.density, made.share80) == (exact.density, exact.share80)


def test_another_seed_is_another_model(exact: PlantReport, tmp_path: Path) -> None:
    first = plant(options("tiny", seed=1), tmp_path / "1", device="cpu")
    second = plant(options("tiny", seed=2), tmp_path / "2", device="cpu")
    assert first.checksum != second.checksum


def test_logits_are_the_oracles_and_those_of_transformers(exact: PlantReport) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = Oracle.load(exact.path)
    ids = np.random.default_rng(0).integers(0, exact.spec.vocab_size, 60).tolist()
    expected = oracle.forward(ids).logits_TV
    model = transformers.AutoModelForCausalLM.from_pretrained(exact.path, dtype=torch.float32)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-3, rtol=0)
    for predictor in ("exact", "learned"):
        with session(exact.path, predictor=predictor) as local:
            logits, _ = local.logits(ids)
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exact.path)
    assert tokenizer("a b").input_ids == Tokenizer.load(exact.path).encode("a b")


def test_decoding_walks_on_without_a_loop(exact: PlantReport) -> None:
    sampling = Sampling(max_tokens=400)
    with session(exact.path, predictor="learned") as local:
        sampled = list(local.sample(Tokenizer.load(exact.path).encode("Once"), sampling))
        text = "".join(t.text for t in local.generate("Once", Sampling(max_tokens=8)))
    ids = [id_ for id_, _ in sampled]
    assert len(ids) == 400
    assert len(set(ids)) == 400
    assert np.isfinite([logprob for _, logprob in sampled]).all()
    assert text


# ---- nothing half-written ------------------------------------------------------------------------
def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for name in ("full", "file"):
        with pytest.raises(ConfigError, match=name):
            plant(options("tiny"), tmp_path / name, device="cpu")
    assert (tmp_path / "full" / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    plant(options("tiny"), tmp_path / "empty", device="cpu")
    open_bundle(tmp_path / "empty")


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plant(options("tiny"), tmp_path / "out", device="cpu", progress=fail)
    assert not list(tmp_path.iterdir())

    class Full:
        free = 1000

    monkeypatch.setattr(making.shutil, "disk_usage", lambda path: Full)
    with pytest.raises(BudgetError, match="GB free"):
        plant(options("tiny"), tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(streams.os, "pwrite", full)
    with pytest.raises(BudgetError, match="No space left"):
        plant(options("tiny"), tmp_path / "out", device="cpu")
    assert not list(tmp_path.iterdir())


def test_whoever_was_faster_keeps_the_folder(tmp_path: Path) -> None:
    def other(done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("precious")

    with pytest.raises(ConfigError, match="not empty"):
        plant(options("tiny"), tmp_path / "out", device="cpu", progress=other)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        plant(options("tiny"), tmp_path / "out", device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="cuda"):
            plant(options("tiny"), tmp_path / "out", device="cuda")


# ---- parts ---------------------------------------------------------------------------------------
def test_blocks_have_the_checksum_of_their_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 40 << 20, np.uint8)
    with BlockWriter(tmp_path / "file") as out:
        for piece in np.array_split(data, 7):
            out.write(memoryview(piece))
        out.zeros(5)
        digest = out.digest()
    assert (tmp_path / "file").read_bytes() == data.tobytes() + bytes(5)
    assert digest == file_digest(tmp_path / "file")


@pytest.mark.parametrize("vocab", [259, 300, 512])
def test_every_id_has_a_text_and_every_text_its_bytes(vocab: int) -> None:
    tokenizer = byte_tokenizer(vocab)
    assert tokenizer.get_vocab_size() == vocab
    for text in ("plain", "two  blanks\n", "na\u00efve \U0001f600"):
        ids = tokenizer.encode(text).ids
        assert ids[0] == 1
        assert len(ids) == 1 + len(text.encode())
        assert tokenizer.decode(ids) == text
    if vocab > 259:
        assert tokenizer.decode([vocab - 1]) == f" w{vocab - 1}"
