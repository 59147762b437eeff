"""Predictors without matrices in the native loop: the oracle's masks, for any batch and thread."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle
from support.predictors import view_of

from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.frequency import Frequency
from hotcold.policies.predictor.sign import Sign
from hotcold.policies.predictor.window import Window
from hotcold.runtime.engine import prepare as preparing
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.gpu import GpuChoice
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.predictors.predictor import Predictor
from hotcold.runtime.profiles.profile import ActivationProfile

MODEL = TinyLlama(d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301)
KINDS: dict[str, Predictor] = {
    "sign": Sign(recall=0.8),
    "sign of the input": Sign(recall=0.8, input_bits=1),
    "window": Window(k=3, probe_every=5, share=0.1),
    "window without prior": Window(k=2, probe_every=4, recall=0),
    "frequency": Frequency(recall=0.7),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "odd"
    write_llama(folder, MODEL)
    fired_LN = Oracle.load(folder).forward(ids_of(60, 9)).counts_LN
    ActivationProfile(fired_LN.astype(np.int64), 60).save(folder / "activations.npz")
    return folder


def ids_of(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 300, count).tolist()


def session(model: Path, kind: str, **options: Any) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, predictor=KINDS[kind], **options))
    return LocalSession(deploy(prepared, solve(prepared)))


def proposals(predictor: Predictor, scores_LTN: list[Any]) -> Any:
    def propose(layer: int, x_TD: Any, _h_TD: Any) -> Any:
        scores_TN = predictor.scores(x_TD.astype(np.float32), layer)
        scores_LTN.append(scores_TN)
        return scores_TN >= np.float32(predictor.native(layer).threshold)

    return propose


@pytest.mark.parametrize("kind", list(KINDS))
def test_masks_and_logits_are_the_oracles(model: Path, kind: str) -> None:
    ids = ids_of(45, seed=2)  # of which no input or score is within rounding of a step
    oracle, predictor = Oracle.load(model), KINDS[kind]
    with session(model, kind) as local:
        logits, masks_TLN = local.logits(ids)
        view = view_of(oracle, "float32")
        predictor.prepare(view, ActivationProfile.load(model / "activations.npz"))
    scores_LTN: list[Any] = []
    trace = oracle.forward(ids, propose=proposals(predictor, scores_LTN))
    assert 0.1 < masks_TLN.mean() < 0.95
    np.testing.assert_array_equal(masks_TLN.transpose(1, 0, 2), trace.masks_LTN)
    np.testing.assert_allclose(logits, trace.logits_TV, atol=1e-3, rtol=0)
    assert np.abs(logits - oracle.forward(ids).logits_TV).max() > 1e-2, "nothing was left out"


@pytest.mark.parametrize("kind", ["sign", "window", "frequency"])
def test_threads_batch_and_split_change_no_mask(model: Path, kind: str) -> None:
    ids = ids_of(37)
    runs = []
    for threads, batch, vram in [(1, 32, None), (2, 32, None), (2, 1, 0), (1, 5, "1GiB")]:
        with session(model, kind, threads=threads, max_batch=batch, vram=vram) as local:
            runs.append(local.logits(ids))
    for logits, masks in runs[1:]:
        np.testing.assert_array_equal(runs[0][1], masks)
        np.testing.assert_allclose(runs[0][0], logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["sign", "window"])
def test_decoding_proposes_what_reading_the_same_text_does(model: Path, kind: str) -> None:
    prompt = ids_of(9)
    with session(model, kind) as local:
        for _ in range(2):  # the second request must not see the first one's past
            made = list(local.sample(prompt, Sampling(max_tokens=30, ignore_eos=True)))
        whole = [*prompt, *(id_ for id_, _ in made)]
        logits, _ = local.logits(whole)
    read = logits[len(prompt) - 1 : -1]
    read = read - read.max(axis=1, keepdims=True)
    read -= np.log(np.exp(read).sum(axis=1, keepdims=True))
    said = [read[i, id_] for i, (id_, _) in enumerate(made)]
    np.testing.assert_allclose([log for _, log in made], said, atol=1e-5)


def test_a_window_reads_only_the_gates_it_proposes(model: Path) -> None:
    ids = ids_of(30)
    with session(model, "window", max_batch=1, audit=1) as local:
        _, masks_TLN = local.logits(ids)
        states = {actor: local.segment.actor_state(actor) for actor in local.executors}
    assert states["predictor"].gate_rows == masks_TLN.sum()
    assert states["gpu"].gate_rows == states["cpu"].gate_rows == 0
    neurons = masks_TLN.shape[1] * 51
    row = 35 * 4
    assert states["predictor"].bytes == masks_TLN.sum() * row + len(ids) * 8 * neurons
    # the audit looks at every neuron that was left out
    assert states["gpu"].audit_rows + states["cpu"].audit_rows == (~masks_TLN).sum()


def test_signs_are_a_bit_a_weight(model: Path) -> None:
    with session(model, "sign", max_batch=1) as local:
        local.logits(ids_of(4))
        read = local.segment.actor_state("predictor").bytes
    a_layer = 51 * 8 + 51 * 8 + 35 * 4  # one word of signs, scale and bias a row; columns
    assert read == 4 * 3 * a_layer


def test_a_gpu_refuses_what_remembers_firings_and_takes_the_rest(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GpuChoice("float32", None, 1 << 30, 1 << 20, 1 << 19)
    monkeypatch.setattr(preparing, "choose_gpu", lambda *_: gpu)
    with pytest.raises(ConfigError, match="'window' remembers .* a GPU is not told"):
        prepare_model(EngineConfig(model=model, predictor="window"))
    for kind in ("frequency", "sign"):
        assert prepare_model(EngineConfig(model=model, predictor=kind)).predicts
    assert not prepare_model(EngineConfig(model=model, predictor="exact")).predicts


@pytest.mark.parametrize("kind", ["exact", "window"])
def test_gates_are_not_taken_from_another_layers_input(model: Path, kind: str) -> None:
    prepared = prepare_model(EngineConfig(model=model, predictor=kind, schedule="lookahead"))
    with pytest.raises(ConfigError, match="evaluates gates"):
        deploy(prepared, solve(prepared))
    prepared = prepare_model(EngineConfig(model=model, predictor="sign", schedule="lookahead"))
    assert deploy(prepared, solve(prepared)).predicts
