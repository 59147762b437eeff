"""MiniCPM against transformers' Granite, a Llama with the same factors under other names."""

from pathlib import Path
from typing import Any

import pytest
from support.references import check_briefly, refused, rewrite
from support.tiny_models import MINICPM

from hotcold.runtime.engine.gpu import unsupported
from hotcold.runtime.model.checkpoints.bundle import look_at


@pytest.mark.parametrize("form", list(MINICPM))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = MINICPM[form].write(tmp_path)
    reference = MINICPM[form].reference(folder)
    check_briefly(folder, reference)


def test_factors_become_a_scale_and_an_epsilon(tmp_path: Path) -> None:
    folder = MINICPM["fatrelu"].write(tmp_path)
    spec = look_at(folder)[1]
    added = 1.4 / 2**0.5
    assert spec.embed_scale == pytest.approx(12 / added)
    assert spec.norm_eps == pytest.approx(1e-6 / added**2)
    assert (spec.activation, spec.activation_threshold, spec.tied) == ("fatrelu", 0.03, True)
    assert unsupported(spec) == "scaled embeddings"
    factors = ("scale_emb", "scale_depth", "tie_word_embeddings")
    rewrite(folder, {**dict.fromkeys(factors, ...)})  # 1, 1 and tied, as its class has them
    spec = look_at(folder)[1]
    assert (spec.embed_scale, spec.tied) == (pytest.approx(2**0.5), True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act_param": 0}, ["hidden_act_param is 0"]),
        ({"scale_depth": 0}, ["scale_depth is 0"]),
        ({"scale_depth": 1e-6}, ["norm epsilon"]),
        ({"dim_model_base": 1.5}, ["dim_model_base is 1.5"]),
        ({"hidden_act": "softplus"}, ["'softplus' (hidden_act)"]),
        ({"num_experts": 8}, ["num_experts is 8", "mixture of experts"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(MINICPM["fatrelu"].write(tmp_path), changes, *words)
