"""Persimmon against transformers: one matrix of q, k and v, norms of heads, biases everywhere."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.references import check_briefly, check_on_cpu, refused
from support.tiny_models import PERSIMMON

from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.weights.weights import WeightStore


@pytest.mark.parametrize("form", list(PERSIMMON))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = PERSIMMON[form].write(tmp_path)
    reference = PERSIMMON[form].reference(folder)
    check_briefly(folder, reference)


def test_neurons_are_the_references(tmp_path: Path) -> None:
    form = next(iter(PERSIMMON))
    folder = PERSIMMON[form].write(tmp_path)
    check_on_cpu(folder, PERSIMMON[form].reference(folder))


def test_what_the_bundle_holds(tmp_path: Path) -> None:
    """Heads of q and k in the order of rotary.py, biases and norms of heads likewise."""
    folder = PERSIMMON["half of a head"].write(tmp_path)
    held: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    p, order = "model.layers.1.self_attn", [0, 1, 4, 5, 2, 3, 6, 7]
    with WeightStore.open(resolve_model(folder)) as store:
        bias = store.float32("layers.1.qkv_bias").reshape(3, 4, 8)
        theirs = held[f"{p}.query_key_value.bias"].reshape(4, 3, 8).swapaxes(0, 1)
        np.testing.assert_array_equal(bias[:2], theirs[:2][:, :, order])
        np.testing.assert_array_equal(bias[2], theirs[2])
        for name, ending in (("k_norm", "weight"), ("k_norm_bias", "bias")):
            norm = held[f"{p}.k_layernorm.{ending}"]
            np.testing.assert_array_equal(store.float32(f"layers.1.{name}"), norm[order])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, ["'relu' is not supported", "hidden_act 'relu2'"]),
        ({"num_key_value_heads": 2}, ["num_key_value_heads is 2", "remove it"]),
        ({"qk_layernorm": 1}, ["qk_layernorm is 1"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(PERSIMMON["half of a head"].write(tmp_path), changes, *words)
