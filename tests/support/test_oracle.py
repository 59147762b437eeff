"""The oracle against transformers: logits, activation counts, masks, rotary scalings, decoding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.oracle import Cache, Oracle, clear_until, top2_margin
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPES: dict[str, dict[str, Any]] = {
    "grouped, tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "one kv head, untied, odd sizes": {
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 10,
        "hidden_size": 39,
        "intermediate_size": 53,
        "vocab_size": 71,
        "tie_word_embeddings": False,
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4}},
    "llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
}


def build(seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """A random Llama in float64, its norms away from 1 and its weights large enough to matter."""
    shape = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "relu",
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **settings})).to(torch.float64).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


def oracle_of(model: LlamaForCausalLM) -> Oracle:
    tensors = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    return Oracle(model.config.to_dict(), tensors)


def reference(
    model: LlamaForCausalLM, tokens: list[int], masks_LTN: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of transformers and the counts a hook on the activation sees; masks zero neurons."""
    counts = []

    def hook(index: int) -> Any:
        def count(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            counts.append((output[0] > 0).sum(dim=0).numpy())
            if masks_LTN is None:
                return output
            return output * torch.from_numpy(masks_LTN[index])[None]

        return count

    handles = [
        layer.mlp.act_fn.register_forward_hook(hook(i))
        for i, layer in enumerate(model.model.layers)
    ]
    try:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].numpy()
    finally:
        for handle in handles:
            handle.remove()
    return logits, np.stack(counts)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_random_models_match_transformers(shape: dict[str, Any]) -> None:
    model = build(**shape)
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, 61).tolist()
    logits, counts = reference(model, tokens)
    trace = oracle_of(model).forward(tokens)
    np.testing.assert_allclose(trace.logits_TV, logits, atol=1e-4)
    np.testing.assert_array_equal(trace.counts_LN, counts)


def test_rotary_scaling_is_not_ignored() -> None:
    tokens = list(range(60))
    logits = [
        oracle_of(build(rope_parameters=rope)).forward(tokens).logits_TV
        for rope in (
            {"rope_type": "default", "rope_theta": 1e4},
            {"rope_type": "default", "rope_theta": 5e5},
            {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e4},
            {**LLAMA3, "rope_theta": 1e4},
        )
    ]
    for index, one in enumerate(logits):
        for other in logits[:index]:
            assert np.abs(one - other).max() > 1e-2


def test_old_and_new_spelling_of_the_config_agree() -> None:
    oracle = oracle_of(build(rope_parameters={**LLAMA3, "rope_theta": 5e5}))
    config = {k: v for k, v in oracle.config.items() if k != "rope_parameters"}
    old = Oracle({**config, "rope_theta": 5e5, "rope_scaling": LLAMA3}, oracle.tensors)
    tokens = list(range(50))
    np.testing.assert_array_equal(old.forward(tokens).logits_TV, oracle.forward(tokens).logits_TV)


def test_masked_neurons_contribute_nothing() -> None:
    model = build(num_key_value_heads=2)
    tokens = list(range(3, 40))
    masks_LTN = np.random.default_rng(2).random((3, len(tokens), 64)) < 0.5
    logits, _ = reference(model, tokens, masks_LTN)
    oracle = oracle_of(model)
    trace = oracle.forward(tokens, masks_LTN)
    np.testing.assert_allclose(trace.logits_TV, logits, atol=1e-4)
    assert np.abs(trace.logits_TV - oracle.forward(tokens).logits_TV).max() > 1e-2
    exact = oracle.forward(tokens, propose=lambda layer, x, h: x @ gate(oracle, layer).T > 0)
    np.testing.assert_array_equal(exact.logits_TV, oracle.forward(tokens).logits_TV)
    np.testing.assert_array_equal(exact.masks_LTN, exact.gates_LTN > 0)


def gate(oracle: Oracle, layer: int) -> np.ndarray:
    return oracle.layer(layer, "mlp.gate_proj")


def test_cache_continues_a_sequence() -> None:
    oracle = oracle_of(build(num_key_value_heads=2))
    tokens = list(range(20))
    cache = Cache()
    parts = [
        oracle.forward(part, cache=cache).logits_TV
        for part in (tokens[:7], tokens[7:8], tokens[8:])
    ]
    assert cache.length == len(tokens)
    whole = oracle.forward(tokens).logits_TV
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-10)


def test_residuals_and_inputs_belong_together() -> None:
    oracle = oracle_of(build())
    trace = oracle.forward([5, 9, 2])
    for layer in range(3):
        h_TD = trace.residuals_LTD[layer]
        rms = np.sqrt((h_TD**2).mean(axis=1, keepdims=True) + oracle.config["rms_norm_eps"])
        weight = oracle.layer(layer, "post_attention_layernorm")
        np.testing.assert_allclose(trace.inputs_LTD[layer], h_TD / rms * weight, atol=1e-12)


def test_greedy_decodes_what_transformers_decodes() -> None:
    model = build(num_key_value_heads=2)
    decoded = oracle_of(model).greedy([1, 2, 3], 30)
    with torch.no_grad():
        out = model.generate(
            torch.tensor([[1, 2, 3]]), max_new_tokens=30, do_sample=False, eos_token_id=None
        )
    clear = clear_until(decoded.margins, 1e-6)
    assert clear > 5
    assert decoded.ids[:clear] == out[0, 3:].tolist()[:clear]


def test_margins_and_clear_until() -> None:
    assert top2_margin(np.array([1.0, 5.0, 4.5])) == 0.5
    np.testing.assert_array_equal(top2_margin(np.array([[1.0, 3.0], [2.0, 2.0]])), [2.0, 0.0])
    assert clear_until([0.5, 0.01, 0.5], 0.1) == 1
    assert clear_until([], 0.1) == 0
    assert clear_until([1.0, 1.0], 0.1) == 2


def test_embedded_model_matches_transformers() -> None:
    folder = Path(__file__).parents[2] / "runtime" / "embedded"
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = [1, *np.random.default_rng(3).integers(3, 8192, 63).tolist()]
    logits, counts = reference(model, tokens)
    trace = Oracle.load(folder).forward(tokens)
    np.testing.assert_allclose(trace.logits_TV, logits, atol=1e-4)
    # A gate within rounding of 0 may fall on either side in float32: seen 0 times in 655,360.
    assert np.abs(trace.counts_LN - counts).sum() <= 2
