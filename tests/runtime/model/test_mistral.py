"""Mistral and SmolLM2 against transformers: Llamas with SiLU, a window, tied embeddings."""

from pathlib import Path
from typing import Any

import pytest
from support.references import check_briefly, refused, rewrite
from support.tiny_models import MISTRAL, SMOLLM2

from hotcold.runtime.model.checkpoints.bundle import look_at


def test_logits_and_tokens_are_the_references(tmp_path: Path) -> None:
    folder = MISTRAL["window"].write(tmp_path)
    check_briefly(folder, MISTRAL["window"].reference(folder))


def test_smollm2_is_a_llama(tmp_path: Path) -> None:
    folder = SMOLLM2.write(tmp_path)
    check_briefly(folder, SMOLLM2.reference(folder))
    spec = look_at(folder)[1]
    assert (spec.activation, spec.tied, spec.gated) == ("silu", True, True)


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Absent keys are as in transformers: a window of 4096 positions, 8 key heads."""
    folder = MISTRAL["window"].write(tmp_path)
    rewrite(folder, {"sliding_window": ..., "max_position_embeddings": ...})
    spec = look_at(folder)[1]
    assert (spec.attention_window, spec.max_context, spec.head_dim) == (4096, 131072, 6)
    words = "num_attention_heads 5 is not a multiple of num_key_value_heads 8"
    refused(folder, {"num_key_value_heads": ...}, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "softplus"}, ["'softplus' (hidden_act)", "relu2, silu"]),
        ({"sliding_window": 0}, ["sliding_window is 0", "1 to"]),
        ({"architectures": ["Mistral4ForCausalLM"]}, ["Mistral4ForCausalLM"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(MISTRAL["window"].write(tmp_path), changes, *words)
