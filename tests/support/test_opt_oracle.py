"""The OPT oracle against transformers: logits, activation counts, masks, decoding, every form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.opt_models import FORMS, TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Cache, clear_until
from transformers import OPTForCausalLM


def both(folder: Path, model: TinyOpt) -> tuple[OPTForCausalLM, OptOracle]:
    write_opt(folder, model)
    theirs = OPTForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return theirs, OptOracle.load(folder)


def reference(
    model: OPTForCausalLM, tokens: list[int], masks_LTN: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of transformers and the counts a hook on the activation sees; masks zero neurons."""
    counts = []

    def hook(index: int) -> Any:
        def count(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            rows = output.reshape(len(tokens), -1)
            counts.append((rows > 0).sum(dim=0).numpy())
            if masks_LTN is None:
                return output
            return output * torch.from_numpy(masks_LTN[index]).reshape(output.shape)

        return count

    handles = []
    for index, layer in enumerate(model.model.decoder.layers):
        layer.activation_fn = torch.nn.ReLU()  # one of its own, so that the hook is the layer's
        handles.append(layer.activation_fn.register_forward_hook(hook(index)))
    try:
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].numpy()
    finally:
        for handle in handles:
            handle.remove()
    return logits, np.stack(counts)


@pytest.mark.parametrize("model", FORMS.values(), ids=FORMS.keys())
def test_every_form_matches_transformers(tmp_path: Path, model: TinyOpt) -> None:
    theirs, oracle = both(tmp_path, model)
    tokens = np.random.default_rng(1).integers(0, model.vocab, 61).tolist()
    logits, counts = reference(theirs, tokens)
    trace = oracle.forward(tokens)
    np.testing.assert_allclose(trace.logits_TV, logits, atol=1e-4)
    np.testing.assert_array_equal(trace.counts_LN, counts)
    assert 0.2 < (counts / len(tokens)).mean() < 0.8


@pytest.mark.parametrize("form", ["odd", "350m"])
def test_masks_cache_and_decoding(tmp_path: Path, form: str) -> None:
    theirs, oracle = both(tmp_path, FORMS[form])
    tokens = list(range(3, 40))
    shape = (oracle.n_layers, len(tokens), oracle.n_neurons)
    masks_LTN = np.random.default_rng(2).random(shape) < 0.5
    whole = oracle.forward(tokens).logits_TV
    masked = oracle.forward(tokens, masks_LTN).logits_TV
    np.testing.assert_allclose(masked, reference(theirs, tokens, masks_LTN)[0], atol=1e-4)
    assert np.abs(masked - whole).max() > 1e-2
    cache = Cache()
    parts = [oracle.forward(part, cache=cache).logits_TV for part in (tokens[:7], tokens[7:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-10)
    decoded = oracle.greedy(tokens, 20)
    with torch.no_grad():
        out = theirs.generate(
            torch.tensor([tokens]), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
    clear = clear_until(decoded.margins, 1e-6)
    assert clear > 5
    assert decoded.ids[:clear] == out[0, len(tokens) :].tolist()[:clear]
