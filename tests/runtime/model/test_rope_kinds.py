"""Every kind of rotary scaling against transformers, in sequences beyond the original length.

Tables of all kinds; logits of those that no architecture's own test has.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.references import Reference, Tiny, check_briefly, check_in_torch, cpu_session
from support.tiny_models import SIZES
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from hotcold.runtime.model.checkpoints.bundle import look_at
from hotcold.runtime.model.rotary import rotary_tables
from hotcold.runtime.options.config import Sampling

ORIGINAL, COUNT = 16, 50
LONG: dict[str, Any] = {"long_factor": [2.0, 3.5, 7.0, 9.0], "short_factor": [1.0, 1.25, 1.5, 2.0]}
FOURFOLD: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        **{"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        **FOURFOLD,
    },
    "yarn": {"rope_type": "yarn", **FOURFOLD},
    "yarn, mscale": {
        **{"rope_type": "yarn", "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False},
        **{"beta_fast": 8.0, "beta_slow": 2.0, **FOURFOLD},
    },
    "yarn, a factor of its own": {"rope_type": "yarn", "attention_factor": 0.7, **FOURFOLD},
    "longrope": {"rope_type": "longrope", **LONG, **FOURFOLD},
    "longrope, by lengths": {
        **{"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL},
        **LONG,
    },
}


def tiny(kind: str) -> Tiny:
    sizes = {**SIZES, "max_position_embeddings": ORIGINAL if kind == "dynamic" else 64}
    rope = {"rope_theta": 500.0, **KINDS[kind]}
    return Tiny(
        LlamaForCausalLM, LlamaConfig(**sizes, hidden_act="relu", rope_parameters=dict(rope))
    )


def by_token(reference: Reference, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    """Logits of one token at a time behind a cache, as transformers generates."""
    cache, rows = None, []
    with torch.no_grad():
        for id_ in ids:
            made = reference.model(torch.tensor([[id_]]), past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            rows.append(made.logits[0, -1].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("kind", ["yarn, mscale", "longrope"])
def test_logits_and_tokens_are_the_references(tmp_path: Path, kind: str) -> None:
    folder = tiny(kind).write(tmp_path)
    check_briefly(folder, tiny(kind).reference(folder), COUNT, ORIGINAL + 1)


def test_dynamic_is_the_reference_token_by_token(tmp_path: Path) -> None:
    folder = tiny("dynamic").write(tmp_path)
    reference = tiny("dynamic").reference(folder)
    ids = reference.ids(COUNT)
    with cpu_session(folder, context=64) as local:
        logits, _ = local.logits(ids)
        np.testing.assert_allclose(logits, by_token(reference, ids), atol=1e-3, rtol=0)
        drawn = local.sample(ids[:8], Sampling(max_tokens=30, ignore_eos=True))
        ours = [id_ for id_, _ in drawn]
    assert by_token(reference, ids[:8] + ours)[7:-1].argmax(axis=-1).tolist() == ours


@pytest.mark.parametrize("kind", list(KINDS))
def test_tables_are_the_references(tmp_path: Path, kind: str) -> None:
    folder = tiny(kind).write(tmp_path)
    spec = look_at(folder)[1]
    assert spec.max_context == 64
    cos_PE, sin_PE = rotary_tables(spec, 64)
    turn = LlamaRotaryEmbedding(LlamaConfig.from_pretrained(folder))
    # dynamic: the last position of every length, as a cache keeps them
    lengths = range(1, 65) if kind == "dynamic" else [64]
    rows = [turn(torch.zeros(1), torch.arange(length)[None]) for length in lengths]
    cos, sin = (
        torch.cat([row[part][0, -64 // len(rows) :, :4] for row in rows]) for part in (0, 1)
    )
    np.testing.assert_allclose(cos_PE, cos.numpy(), atol=2e-5)
    np.testing.assert_allclose(sin_PE, sin.numpy(), atol=2e-5)
    plain = np.cos(np.outer(np.arange(64), 500.0 ** -np.arange(0, 1, 0.25)))
    assert np.abs(cos_PE - plain).max() > 0.1, "this scaling changes nothing here"


def test_longrope_goes_by_the_context(tmp_path: Path) -> None:
    """A context within the original length has the short factors, as transformers has there."""
    folder = tiny("longrope").write(tmp_path)
    reference = tiny("longrope").reference(folder)
    ids = reference.ids(ORIGINAL)
    expected = reference.forward(ids).logits_TV
    with cpu_session(folder, context=ORIGINAL) as local:
        np.testing.assert_allclose(local.logits(ids)[0], expected, atol=1e-3, rtol=0)
    check_in_torch(folder, reference, ORIGINAL)


def test_dynamic_leaves_the_original_length_alone(tmp_path: Path) -> None:
    """There its prompts are transformers' in one piece, too; rows before it are of no scaling."""
    folder = tiny("dynamic").write(tmp_path)
    reference = tiny("dynamic").reference(folder)
    check_in_torch(folder, reference, ORIGINAL)
    cos_PE, _ = rotary_tables(look_at(folder)[1], 64)
    plain = np.cos(np.outer(np.arange(ORIGINAL), 500.0 ** -np.arange(0, 1, 0.25)))
    np.testing.assert_allclose(cos_PE[:ORIGINAL], plain, atol=1e-6)
