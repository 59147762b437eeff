"""evaluate: figures against the oracle's."""

import math
from pathlib import Path

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.audit import ratio_error
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.offline.evaluation.evaluate import evaluate_all
from hotcold.runtime.options.config import EngineConfig, Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, TinyLlama())
    return folder


TEXT = np.random.default_rng(0).integers(3, 300, (3, 40)).tolist()


def loss(logits: np.ndarray, window: list[int]) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -float(sum(log_p[i, target] for i, target in enumerate(window[1:])))


def test_exact_is_the_dense_model(folder: Path) -> None:
    found = evaluate_all([EngineConfig(model=folder, predictor="exact", context=64)], TEXT, 8)[0]
    oracle = Oracle.load(folder)
    expected = sum(loss(oracle.forward(window).logits_TV, window) for window in TEXT)
    assert found.perplexity == pytest.approx(math.exp(expected / (3 * 39)), rel=1e-4)
    assert found.ratio == pytest.approx(1, abs=1e-9)
    assert (found.agreement, found.audit.recall, found.audit.precision) == (1, 1, 1)
    assert found.kl == pytest.approx(0, abs=1e-7)
    assert found.decode_tokens_per_s > 0 and found.bytes_per_token > 0
    assert found.tokens == 3 * 39


def test_what_a_predictor_misses_is_counted(folder: Path) -> None:
    config = EngineConfig(
        model=folder, predictor="low-rank", context=64, settings={"predictor.margin": "0.3"}
    )
    found = evaluate_all([config], TEXT, 0)[0]
    oracle = Oracle.load(folder)
    own = both = fired = proposed = 0.0
    prepared = prepare_model(config)
    with LocalSession(deploy(prepared, solve(prepared))) as session:
        for window in TEXT:
            _, masks_TLN = session.logits(window)
            trace = oracle.forward(window, masks_LTN=masks_TLN.transpose(1, 0, 2))
            gates = trace.gates_LTN > 0
            own += loss(trace.logits_TV, window)
            both += (gates & trace.masks_LTN).sum()
            fired += gates.sum()
            proposed += trace.masks_LTN.sum()
    assert found.perplexity == pytest.approx(math.exp(own / found.tokens), rel=1e-4)
    assert found.audit.fired == pytest.approx(fired, abs=3)
    assert found.audit.recall == pytest.approx(both / fired, abs=1e-3) != 1
    assert found.audit.precision == pytest.approx(both / proposed, abs=1e-3)
    assert 0 < found.agreement < 1 and found.kl > 0
    assert math.isnan(found.decode_tokens_per_s)


def test_text_too_short_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="two tokens"):
        evaluate_all([EngineConfig(model=folder)], [[5]])


def test_ratio_error_is_the_spread_of_samples() -> None:
    rng = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(400):
        whole = rng.integers(50, 150, 30)
        part = rng.binomial(whole, np.clip(rng.normal(0.7, 0.1, 30), 0, 1))
        ratios.append(part.sum() / whole.sum())
        errors.append(ratio_error(part, whole))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)
    assert np.isnan(ratio_error([1], [2]))


def test_int8_neurons_leave_the_embedded_model_as_good_as_it_was() -> None:
    """On a text of its own, drawn at temperature 1; on books see MEASURED.md."""
    prepared = prepare_model(EngineConfig(predictor="exact", context=512))
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        prompt = local.text.tokenizer.encode("Once upon a time")
        sampling = Sampling(max_tokens=500, temperature=1.0, ignore_eos=True)
        window = prompt + [id_ for id_, _ in local.sample(prompt, sampling)]
    config = EngineConfig(dtype="int8", predictor="exact", context=512)
    found = evaluate_all([config], [window], 0)[0]
    assert found.tokens >= 500 and 0.997 < found.ratio <= 1.003 and found.ratio != 1
    assert found.agreement > 0.97 and found.kl < 1e-3
