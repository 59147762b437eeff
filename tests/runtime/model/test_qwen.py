"""Qwen2 and Qwen3 against transformers: biases of attention, norms of heads, heads of own size."""

from pathlib import Path
from typing import Any

import pytest
from support.references import check_briefly, refused, rewrite
from support.tiny_models import QWEN

from hotcold.runtime.engine.gpu import unsupported
from hotcold.runtime.model.checkpoints.bundle import look_at


@pytest.mark.parametrize("form", list(QWEN))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = QWEN[form].write(tmp_path)
    reference = QWEN[form].reference(folder)
    check_briefly(folder, reference)


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Qwen2 has biases of q, k and v whatever is said; heads of a Qwen3 have 128 elements."""
    folder = QWEN["2, tied, yarn"].write(tmp_path)
    rewrite(folder, {"attention_bias": False, "sliding_window": 5})  # which is not used
    spec = look_at(folder)[1]
    assert (spec.attention_biases, spec.attention_window, spec.tied) == ("qkv", None, True)
    assert spec.max_context == 64
    refused(folder, {"num_key_value_heads": ...}, "num_key_value_heads 32")
    folder = QWEN["3, all biases, window"].write(tmp_path / "3")
    spec = look_at(folder)[1]
    assert (spec.biased, spec.attention_window, spec.qk_norm) == (("qkv", "o"), 9, True)
    refused(folder, {"head_dim": ...}, "q_proj.weight", "[4352, 35]")


def test_what_a_gpu_cannot_compute_is_named(tmp_path: Path) -> None:
    said = unsupported(look_at(QWEN["3, all biases, window"].write(tmp_path))[1])
    named = (
        "biases of attention alone",
        "norms of queries and keys",
        "the dense activation gelu tanh",
    )
    assert said == ", ".join(named)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ..., "max_window_layers": 1}, ["2 of 3 layers", "use_sliding_window"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "list of 3"]),
        ({"layer_types": ["a", "b", "c"]}, ["layer_types", "'sliding_attention'"]),
        ({"layer_types": ..., "max_window_layers": -1}, ["max_window_layers is -1"]),
        ({"sliding_window": 0}, ["sliding_window is 0"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(QWEN["3, all biases, window"].write(tmp_path), changes, *words)
