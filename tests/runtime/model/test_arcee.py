"""Arcee against transformers: Llama's block around ungated neurons, the square of a ReLU."""

from pathlib import Path
from typing import Any

import pytest
from support.references import check_in_torch, check_on_cpu, refused, rewrite
from support.tiny_models import ARCEE

from hotcold.runtime.model.checkpoints.bundle import look_at, resolve_model


@pytest.mark.parametrize("form", list(ARCEE))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = ARCEE[form].write(tmp_path)
    reference = ARCEE[form].reference(folder)
    check_on_cpu(folder, reference)
    check_in_torch(folder, reference)


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Absent keys are those of transformers' class: relu2, as many key heads, 4096 positions."""
    folder = ARCEE["float16, linear"].write(tmp_path)
    absent = ("hidden_act", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")
    rewrite(folder, dict.fromkeys(absent, ...))
    spec = look_at(folder)[1]
    assert (spec.gated, spec.activation, spec.n_kv_heads) == (False, "relu2", 4)
    assert (spec.max_context, spec.norm_eps, spec.norm) == (4096, 1e-5, "rms")
    record = resolve_model(folder).record
    assert record.bytes == 2 * 32 * 2  # an up row and a down column of halves


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, ["'relu' is not supported", "hidden_act 'relu2'"]),
        ({"mlp_bias": True}, ["mlp_bias is true"]),
        ({"attention_bias": True}, ["lacks", "q_proj.bias"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5", "whole heads"]),
        ({"architectures": ["ArceeModel"]}, ["ArceeModel", "ArceeForCausalLM"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(ARCEE["even"].write(tmp_path), changes, *words)
