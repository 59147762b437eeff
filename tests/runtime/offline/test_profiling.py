"""Counting: neuron by neuron what oracles, transformers and the native kernels find on a text."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkout import ROOT
from support.models import TinyLlama, write_llama
from support.opt_models import FORMS, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle

from hotcold.native.errors import CheckpointError
from hotcold.policies.placement.greedy import Greedy
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model
from hotcold.runtime.offline.profiling import counting
from hotcold.runtime.offline.profiling.counting import choose_streamed, choose_unit, count_unit
from hotcold.runtime.offline.profiling.tally import Tally
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.text.tokenizer import Tokenizer
from hotcold.runtime.text.windows import token_windows
from hotcold.runtime.weights.weights import WeightStore

EMBEDDED = ROOT / "runtime" / "embedded"
NEAR = 1e-4  # pre-activations nearer to 0 may fall on either side of it
LENGTHS = (20, 7, 20, 1, 33, 5)


def windows(vocab: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab, length).tolist() for length in lengths]


def count(bundle: Bundle, texts: list[list[int]], **given: Any) -> tuple[Tally, Any]:
    spec = bundle.spec
    bits = np.zeros((sum(map(len, texts)), spec.n_layers, -(-spec.n_neurons // 8)), np.uint8)
    workers = given.pop("workers", 1)
    with WeightStore.open(bundle) as store:
        model = DenseModel(bundle, store, max(map(len, texts)), **given)
        return count_unit(model, texts, workers, bits), bits


def check(tally: Tally, bits_TLS: Any, gates_LTN: Any) -> None:
    """Every number against pre-activations found another way."""
    layers, tokens, neurons = gates_LTN.shape
    fired_LTN = gates_LTN > 0
    near_LN = (np.abs(gates_LTN) < NEAR).sum(axis=1)
    assert near_LN.mean() < 0.01 * tokens, "the comparison would say nothing"
    assert tally.tokens == tokens
    assert (np.abs(tally.counts_LN - fired_LTN.sum(axis=1)) <= near_LN).all()
    sums_LN = np.maximum(gates_LTN, 0).sum(axis=1)
    np.testing.assert_allclose(tally.sums_LN, sums_LN, rtol=1e-4, atol=tokens * NEAR)
    bits_TLN = np.unpackbits(bits_TLS, axis=-1, count=neurons)
    differ = bits_TLN.transpose(1, 0, 2) != fired_LTN
    assert (np.abs(gates_LTN[differ]) < NEAR).all()
    # Between themselves the numbers agree to the last one.
    np.testing.assert_array_equal(bits_TLN.sum(axis=0), tally.counts_LN)
    for layer in range(layers):
        bins_K = np.bincount(bits_TLN[:, layer].sum(axis=1), minlength=tally.tokens_LK.shape[1])
        np.testing.assert_array_equal(bins_K, tally.tokens_LK[layer])
    tally.profile("", "")  # and make a profile


@pytest.mark.parametrize(
    "shape",
    [TinyLlama(), TinyLlama(d=36, layers=3, neurons=51, heads=6, kv_heads=3, tied=True, seed=4)],
)
def test_llamas_count_as_the_oracle(tmp_path: Path, shape: TinyLlama) -> None:
    folder = write_llama(tmp_path / "model", shape)
    texts = windows(shape.vocab)
    tally, bits = count(resolve_model(folder), texts)
    oracle = Oracle.load(folder)
    check(tally, bits, np.concatenate([oracle.forward(t).gates_LTN for t in texts], axis=1))


@pytest.mark.parametrize("form", FORMS)
def test_opts_count_as_the_oracle(tmp_path: Path, form: str) -> None:
    folder = write_opt(tmp_path / "model", FORMS[form])
    texts = windows(FORMS[form].vocab)
    tally, bits = count(resolve_model(folder), texts)
    oracle = OptOracle.load(folder)
    check(tally, bits, np.concatenate([oracle.forward(t).gates_LTN for t in texts], axis=1))


def hooked(folder: Path, names: str, texts: list[list[int]]) -> Any:
    """Pre-activations [L, T, N] that hooks see in the model of transformers."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: list[list[Any]] = []
    modules = [module for name, module in model.named_modules() if name.endswith(names)]
    for module in modules:
        kept: list[Any] = []
        seen.append(kept)
        module.register_forward_hook(
            lambda _m, _i, out, kept=kept: kept.append(out.reshape(-1, out.shape[-1]).numpy())
        )
    with torch.inference_mode():
        for text in texts:
            model(torch.tensor([text]))
    return np.stack([np.concatenate(kept) for kept in seen])


def test_the_embedded_model_counts_as_hooks_on_transformers() -> None:
    bundle = resolve_model(None)
    tokenizer = Tokenizer.load(bundle.path)
    texts = [w for w, _ in token_windows([ROOT / "LICENSE"], tokenizer, 256, 700)]
    tally, bits = count(bundle, texts, workers=2)
    check(tally, bits, hooked(EMBEDDED, "mlp.gate_proj", texts))


def test_an_opt_counts_as_hooks_on_transformers(tmp_path: Path) -> None:
    folder = write_opt(tmp_path / "model", FORMS["even"])
    texts = windows(300)
    tally, bits = count(resolve_model(folder), texts)
    check(tally, bits, hooked(folder, "fc1", texts))


def test_the_native_kernels_count_the_same() -> None:
    bundle = resolve_model(None)
    tokenizer = Tokenizer.load(bundle.path)
    texts = [w for w, _ in token_windows([ROOT / "LICENSE"], tokenizer, 128, 600)]
    tally, _ = count(bundle, texts)
    fired_LN = np.zeros(tally.counts_LN.shape, np.int64)
    prepared = prepare_model(EngineConfig(predictor="exact"))
    once = Sampling(max_tokens=1, ignore_eos=True)
    with LocalSession(deploy(prepared, solve(prepared, Greedy())), fired_LN) as session:
        for text in texts:
            deque(session.sample(text, once), maxlen=0)
    gates_LTN = []
    with WeightStore.open(bundle) as store, torch.inference_mode():
        model = DenseModel(bundle, store, 128)
        for text in texts:
            kept: dict[int, Any] = {}
            model.hidden(
                torch.tensor([text]),
                visit=lambda i, x, _h, kept=kept: kept.update({i: model.gates(i, x).numpy()}),
            )
            gates_LTN.append(np.stack([kept[i] for i in range(len(kept))]))
    near_LN = (np.abs(np.concatenate(gates_LTN, axis=1)) < 1e-3).sum(axis=1)
    assert (np.abs(tally.counts_LN - fired_LN) <= near_LN).all()
    assert np.abs(tally.counts_LN - fired_LN).sum() < 1e-4 * fired_LN.sum()


def same(one: Tally, other: Tally) -> bool:
    pairs = zip(one.arrays().values(), other.arrays().values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_neither_threads_nor_streaming_change_a_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "BATCH_TOKENS", 40)
    bundle = resolve_model(write_llama(tmp_path / "model", TinyLlama(layers=3)))
    texts = windows(300, [20] * 9 + [7, 33])
    tally, bits = count(bundle, texts)
    for given in ({"workers": 3}, {"streamed": True}, {"streamed": True, "workers": 3}):
        again, again_bits = count(bundle, texts, **given)
        assert same(tally, again), given
        np.testing.assert_array_equal(bits, again_bits)


@pytest.mark.gpu
def test_a_gpu_counts_the_same(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    for folder in (
        write_llama(tmp_path / "llama", TinyLlama(layers=3)),
        write_opt(tmp_path / "opt", FORMS["350m"]),
    ):
        bundle, texts = resolve_model(folder), windows(300)
        cpu, _ = count(bundle, texts)
        for streamed in (False, True):
            cuda, bits = count(bundle, texts, device="cuda", streamed=streamed)
            assert np.abs(cpu.counts_LN - cuda.counts_LN).sum() <= 2
            np.testing.assert_allclose(cpu.sums_LN, cuda.sums_LN, rtol=1e-3, atol=1e-3)
            bits_TLN = np.unpackbits(bits, axis=-1, count=bundle.spec.n_neurons)
            np.testing.assert_array_equal(bits_TLN.sum(axis=0), cuda.counts_LN)


def test_a_layer_that_never_fires(tmp_path: Path) -> None:
    from support.models import random_tensors

    shape = TinyLlama()
    tensors = random_tensors(shape)
    tensors["model.layers.1.mlp.gate_proj.weight"][:] = 0
    bundle = resolve_model(write_llama(tmp_path / "model", shape, tensors))
    tally, bits = count(bundle, windows(300))
    profile = tally.profile("", "")
    assert profile.sparsity_L[1] == 1 and profile.sparsity_L[0] < 1
    assert profile.share_for(0.8)[1] == 0 and not bits[:, 1].any()
    density_L = profile.density_quantile(0.95)
    assert density_L is not None and density_L[1] == 0
    assert "100.0%" in profile.summary().splitlines()[2]


def test_gates_beyond_all_bounds_are_an_error(tmp_path: Path) -> None:
    from support.models import random_tensors

    shape = TinyLlama()
    tensors = random_tensors(shape)
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e38
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1e38
    bundle = resolve_model(write_llama(tmp_path / "model", shape, tensors))
    with pytest.raises(CheckpointError, match="gates of layer 1 are not finite"):
        count(bundle, windows(300))


def test_what_fits_is_held_and_units_follow_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = resolve_model(write_llama(tmp_path / "model"))
    cpu = torch.device("cpu")
    assert not choose_streamed(bundle, cpu)
    need = bundle.weights_bytes  # float32 already
    monkeypatch.setattr(
        counting.memory, "available", lambda private: counting.memory.Available(need, "a test")
    )
    assert choose_streamed(bundle, cpu)
    assert choose_unit(bundle, cpu, False) == 8192 and choose_unit(bundle, cpu, True) == 4096
