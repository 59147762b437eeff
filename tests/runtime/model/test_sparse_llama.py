"""ProSparse and SparseLM against transformers: a Llama with a threshold, or with a plain ReLU."""

from pathlib import Path
from typing import Any

import pytest
from support.references import check_in_torch, check_on_cpu, refused
from support.tiny_models import SPARSE_LLAMA

from hotcold.runtime.model.checkpoints.bundle import look_at


@pytest.mark.parametrize("form", list(SPARSE_LLAMA))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = SPARSE_LLAMA[form].write(tmp_path)
    reference = SPARSE_LLAMA[form].reference(folder)
    check_on_cpu(folder, reference)
    check_in_torch(folder, reference)


def test_which_of_the_two_is_told_by_the_model_type(tmp_path: Path) -> None:
    specs = {}
    for form, tiny in SPARSE_LLAMA.items():
        (tmp_path / form).mkdir()
        specs[form] = look_at(tiny.write(tmp_path / form))[1]
    pro, lm = specs["prosparse"], specs["sparselm"]
    assert (pro.activation, pro.activation_threshold) == ("fatrelu", 0.25)
    assert (lm.activation, lm.activation_threshold) == ("relu", 0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "silu"}, ["'silu' is not supported", "hidden_act 'fatrelu'"]),
        ({"hidden_act_param": -1}, ["hidden_act_param is -1"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(SPARSE_LLAMA["prosparse"].write(tmp_path), changes, *words)
