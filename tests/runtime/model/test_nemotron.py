"""Nemotron against transformers: layer norms around 1, heads that turn in part, squared ReLU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from support.references import check_in_torch, check_on_cpu, refused, rewrite
from support.tiny_models import NEMOTRON

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.bundle import look_at, resolve_model
from hotcold.runtime.model.rotary import head_order, rotary_tables
from hotcold.runtime.weights.gguf import check_gguf
from hotcold.runtime.weights.weights import WeightStore


@pytest.mark.parametrize("form", list(NEMOTRON))
def test_logits_and_tokens_are_the_references(tmp_path: Path, form: str) -> None:
    folder = NEMOTRON[form].write(tmp_path)
    reference = NEMOTRON[form].reference(folder)
    check_on_cpu(folder, reference)
    check_in_torch(folder, reference)


def test_what_the_bundle_holds(tmp_path: Path) -> None:
    """Norm weights + 1; query and key rows with turned elements half a head apart; values as is."""
    folder = NEMOTRON["half of a head"].write(tmp_path)
    held: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        held |= load_file(path)
    bundle = resolve_model(folder)
    assert bundle.spec.rotary_dim == 4
    order = [0, 1, 4, 5, 2, 3, 6, 7]
    assert [e for part in head_order(8, 4) for e in part] == order
    p = "model.layers.1"
    with WeightStore.open(bundle) as store:
        norm = store.float32("layers.1.ffn_norm")
        np.testing.assert_array_equal(norm, held[f"{p}.post_attention_layernorm.weight"] + 1)
        bias = store.float32("final_norm_bias")
        np.testing.assert_array_equal(bias, held["model.norm.bias"])
        q, k, v = np.split(store.float32("layers.1.qkv"), [32, 48])
        for rows, name in ((q, "q"), (k, "k")):
            heads = held[f"{p}.self_attn.{name}_proj.weight"].reshape(-1, 8, 32)
            np.testing.assert_array_equal(rows.reshape(heads.shape), heads[:, order])
        np.testing.assert_array_equal(v, held[f"{p}.self_attn.v_proj.weight"])
    cos, sin = rotary_tables(bundle.spec, 9)
    assert (cos[:, 2:] == 1).all() and (sin[:, 2:] == 0).all()
    np.testing.assert_allclose(cos[:, :2], np.cos(np.outer(np.arange(9), [1, 0.01])), atol=1e-7)


def test_what_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Half of a head turns where nothing says how much; older files call it rope_percent."""
    folder = NEMOTRON["odd, a third"].write(tmp_path)
    rope = {"rope_parameters": ..., "rope_theta": 1e4, "rope_scaling": None}
    rewrite(folder, {**rope, "partial_rotary_factor": ..., "rope_percent": 0.67})
    assert look_at(folder)[1].rotary_dim == 4
    rewrite(folder, {"rope_percent": ..., "norm_eps": ..., "head_dim": 12})
    refused(folder, {}, "q_proj.weight", "[60, 35]")
    rewrite(folder, {"head_dim": 6, "partial_rotary_factor": 1})
    spec = look_at(folder)[1]
    assert (spec.rotary_dim, spec.norm_eps, spec.norm, spec.gated) == (None, 1e-5, "layer", False)


def test_no_gguf_is_written_of_heads_in_another_order(tmp_path: Path) -> None:
    spec = look_at(NEMOTRON["half of a head"].write(tmp_path))[1]
    with pytest.raises(ConfigError, match="Llama models .* this one is nemotron"):
        check_gguf(spec)


def test_inspect_shows_it(tmp_path: Path) -> None:
    from hotcold.actors.cli.commands.inspect import command

    result = CliRunner().invoke(command, [str(NEMOTRON["half of a head"].write(tmp_path))])
    assert result.exit_code == 0, result.output
    assert "8 each, 4 of them turned" in result.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, ["'gelu' is not supported", "hidden_act 'relu2'"]),
        ({"mlp_bias": True}, ["mlp_bias is true"]),
        ({"attention_bias": True}, ["lacks", "q_proj.bias"]),
        ({"norm_eps": 0}, ["norm_eps is 0"]),
        ({"rope_percent": 1.5, "rope_parameters": ...}, ["rope_percent is 1.5", "at most 1"]),
        ({"partial_rotary_factor": 0.4, "rope_parameters": ...}, ["0.4", "even", "8 elements"]),
        ({"partial_rotary_factor": "x", "rope_parameters": ...}, ["partial_rotary_factor is 'x'"]),
    ],
)
def test_configs_that_cannot_be_used(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    refused(NEMOTRON["half of a head"].write(tmp_path), changes, *words)
