"""Hugging Face folders: what is read, bit by bit, and what is refused, with which words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.models import (
    TinyLlama,
    config_json,
    random_tensors,
    to_raw,
    write_llama,
    write_safetensors,
)

from hotcold.native.errors import CheckpointError
from hotcold.runtime import embedded
from hotcold.runtime.model.checkpoints.huggingface import Checkpoint

SHAPES = [
    TinyLlama(),
    TinyLlama(d=45, layers=1, neurons=33, heads=5, kv_heads=1, head_dim=6, vocab=7),
    TinyLlama(d=36, neurons=1, heads=6, kv_heads=6, tied=True, shards=3, new_keys=True),
    TinyLlama(d=2, layers=3, neurons=2, heads=1, kv_heads=1, vocab=1, context=1, shards=2),
]


def refuse(folder: Path, *words: str) -> str:
    """The one sentence a folder is refused with; it must hold the words."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 900
    for word in words:
        assert word in text, text
    return text


def refuse_config(tmp_path: Path, config: dict[str, Any], *words: str) -> str:
    return refuse(write_llama(tmp_path / "m", TinyLlama(config=config)), "config.json", *words)


def rows(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, Any]:
    return np.concatenate(list(checkpoint.tensor(name)))


def test_stacks_and_neurons_in_small_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SHAPES[1]
    monkeypatch.setattr("hotcold.runtime.model.checkpoints.huggingface.BLOCK_BYTES", 700)
    checkpoint, source = Checkpoint(write_llama(tmp_path, model)), random_tensors(model)
    p = "model.layers.0"
    qkv = np.concatenate([source[f"{p}.self_attn.{x}_proj.weight"] for x in "qkv"])
    np.testing.assert_array_equal(rows(checkpoint, "layers.0.qkv"), qkv)
    np.testing.assert_array_equal(rows(checkpoint, "head"), source["lm_head.weight"])
    blocks = list(checkpoint.neurons(0, 4))
    assert all(list(block) == ["gate", "up", "down"] for block in blocks)
    for part in ("gate", "up", "down"):
        expected = source[f"{p}.mlp.{part}_proj.weight"]
        got = np.concatenate([block[part] for block in blocks])
        np.testing.assert_array_equal(got, expected.T if part == "down" else expected)


@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16"])
def test_conversion_rounds_as_torch(tmp_path: Path, source: str, target: Any) -> None:
    folder = write_llama(tmp_path, TinyLlama(dtype=source, vocab=999))
    checkpoint = Checkpoint(folder, target)
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensor = file.get_tensor("lm_head.weight").to(getattr(torch, target))
        norm = file.get_tensor("model.norm.weight").float()
    got = rows(checkpoint, "head")
    np.testing.assert_array_equal(got.view(np.uint8), tensor.view(torch.uint8).numpy())
    np.testing.assert_array_equal(rows(checkpoint, "final_norm"), norm.numpy())
    assert checkpoint.spec.dtype == target


def test_weights_beyond_float16_are_refused_not_made_infinite(tmp_path: Path) -> None:
    tensors = random_tensors(TinyLlama())
    tensors["lm_head.weight"][5, 3] = 1e5
    checkpoint = Checkpoint(write_llama(tmp_path, TinyLlama(), tensors), "float16")
    with pytest.raises(CheckpointError, match="lm_head.weight.*100000.*65504.*bfloat16"):
        rows(checkpoint, "head")


def test_mixed_dtypes_take_the_announced_one_or_float32(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, TinyLlama(dtype="bfloat16"))
    values = random_tensors(TinyLlama())
    raw = {n: to_raw(v, "float16" if "q_proj" in n else "bfloat16") for n, v in values.items()}
    write_safetensors(folder / "model.safetensors", raw)
    assert Checkpoint(folder).spec.dtype == "bfloat16"
    config = config_json(TinyLlama(config={"torch_dtype": None}))
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint(folder).spec.dtype == "float32"


def test_old_and_new_spellings_give_one_spec(tmp_path: Path) -> None:
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    for rope in ({}, {"factor": 2.0, "rope_type": "linear"}, {**llama3, "rope_type": "llama3"}):
        old = TinyLlama(rope=rope, rope_theta=5e5)
        specs = [
            Checkpoint(write_llama(tmp_path / "m", replace(old, new_keys=new))).spec
            for new in (False, True)
        ]
        assert specs[0] == specs[1]
        assert specs[0].rope_theta == 5e5
        assert specs[0].rope_scaling == (rope or None)
    oldest = TinyLlama(rope={"type": "linear", "factor": 2})
    scaling = Checkpoint(write_llama(tmp_path / "m", oldest)).spec.rope_scaling
    assert scaling == {"rope_type": "linear", "factor": 2}


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    absent = ("rms_norm_eps", "rope_theta", "tie_word_embeddings", "num_key_value_heads")
    absent += ("bos_token_id", "eos_token_id", "max_position_embeddings", "torch_dtype")
    model = TinyLlama(kv_heads=4, config=dict.fromkeys(absent))
    spec = Checkpoint(write_llama(tmp_path, model)).spec
    assert (spec.norm_eps, spec.rope_theta, spec.tied) == (1e-6, 1e4, False)
    assert (spec.n_kv_heads, spec.max_context) == (4, 2048)
    assert (spec.bos_ids, spec.eos_ids) == ((), ())


def test_end_of_text_ids(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, TinyLlama(config={"eos_token_id": [5, 7]}))
    assert Checkpoint(folder).spec.eos_ids == (5, 7)
    generation = folder / "generation_config.json"
    generation.write_text('{"eos_token_id": [9, 2]}')
    assert Checkpoint(folder).spec.eos_ids == (9, 2)
    generation.write_text('{"eos_token_id": 3}')
    assert Checkpoint(folder).spec.eos_ids == (3,)
    generation.write_text("{}")
    assert Checkpoint(folder).spec.eos_ids == (5, 7)
    generation.write_text('{"eos_token_id": 300}')
    refuse(folder, "generation_config.json", "eos_token_id", "300")


def test_a_tied_pair_under_either_name_or_both(tmp_path: Path) -> None:
    model = TinyLlama(tied=True)
    tensors = random_tensors(model)
    embed = tensors.pop("model.embed_tokens.weight")
    other = embed + 1
    for stored, tied in (
        ({"lm_head.weight": embed}, True),
        ({"lm_head.weight": embed, "model.embed_tokens.weight": embed}, True),
        ({"lm_head.weight": other, "model.embed_tokens.weight": embed}, False),
    ):
        checkpoint = Checkpoint(write_llama(tmp_path / "m", model, {**tensors, **stored}))
        assert checkpoint.spec.tied is tied
        np.testing.assert_array_equal(rows(checkpoint, "embed"), embed)
        if not tied:
            np.testing.assert_array_equal(rows(checkpoint, "head"), other)


def test_the_embedded_model() -> None:
    checkpoint = Checkpoint(embedded.path())
    spec = checkpoint.spec
    assert (spec.dtype, spec.tied, spec.bos_ids, spec.eos_ids) == ("float16", True, (1,), (2,))
    with safe_open(embedded.path() / "model.safetensors", "np") as file:
        down = file.get_tensor("model.layers.7.mlp.down_proj.weight")
    parts = list(checkpoint.neurons(7, 100))
    np.testing.assert_array_equal(np.concatenate([part["down"] for part in parts]), down.T)


@pytest.mark.parametrize(
    "key",
    [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "head_dim",
    ],
)
@pytest.mark.parametrize("value", [0, -4, 2.0, True, "64", [64], {}, 10**30, 1 << 31])
def test_absurd_sizes(tmp_path: Path, key: str, value: object) -> None:
    refuse_config(tmp_path, {key: value}, key, repr(value)[:80], "integer of")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rms_norm_eps": 0}, ["rms_norm_eps", "above 0"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"rms_norm_eps": "1e-5"}, ["rms_norm_eps"]),
        ({"rope_theta": -1.0}, ["rope_theta"]),
        ({"rope_theta": float("inf")}, ["rope_theta", "inf"]),
        ({"rope_theta": 10**400}, ["rope_theta"]),
        ({"rope_parameters": {"rope_theta": True}}, ["rope_theta", "True"]),
        ({"rope_scaling": [1]}, ["rope", "[1]"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["'yarn'", "linear, llama3"]),
        ({"rope_scaling": {"rope_type": ["x"]}}, ["supported: default, linear, llama3"]),
        ({"rope_scaling": {"type": "linear"}}, ["factor", "None"]),
        ({"rope_scaling": {"type": "linear", "factor": -2}}, ["factor", "-2"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, ["low_freq_factor"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false"]),
        ({"torch_dtype": 16}, ["dtype", "16"]),
        ({"eos_token_id": -1}, ["eos_token_id", "-1", "300"]),
        ({"eos_token_id": [1, "2"]}, ["eos_token_id"]),
        ({"eos_token_id": True}, ["eos_token_id", "True"]),
        ({"bos_token_id": 300}, ["bos_token_id", "300"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "ReLU"]),
        ({"hidden_act": ["relu"]}, ["relu"]),
        ({"architectures": ["MistralForCausalLM"]}, ["MistralForCausalLM", "LlamaForCausalLM"]),
        ({"architectures": []}, ["[]", "LlamaForCausalLM"]),
        ({"architectures": [["x"]]}, ["LlamaForCausalLM"]),
        ({"architectures": None, "model_type": "gpt2"}, ["gpt2", "LlamaForCausalLM"]),
        ({"quantization_config": {"bits": 4}}, ["quantised"]),
        ({"head_dim": 7}, ["head_dim", "odd"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads 4", "num_key_value_heads 3"]),
        ({"num_attention_heads": 5}, ["hidden_size 32", "num_attention_heads 5"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
    ],
)
def test_config_that_cannot_be_used(
    tmp_path: Path, config: dict[str, Any], words: list[str]
) -> None:
    if config.get("num_attention_heads") == 5:
        config |= {"num_key_value_heads": 1}
    refuse_config(tmp_path, config, *words)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "is empty, truncated by a download"),
        ("{", "not valid JSON"),
        ("[1]", "list"),
        ("null", "NoneType"),
        ("[" * 100_000, "not valid JSON"),
        ('{"vocab_size": ' + "9" * 9000 + "}", "config.json"),
        ("\xff\xfe", "not valid JSON"),
    ],
)
def test_config_that_is_no_config(tmp_path: Path, text: str, word: str) -> None:
    folder = write_llama(tmp_path)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuse(folder, "config.json", word)


def test_missing_files(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, "pickle", "save_pretrained")
    (folder / "pytorch_model.bin").unlink()
    refuse(folder, "model.safetensors", "index.json")
    (folder / "config.json").unlink()
    refuse(folder, "config.json", "bundle")
    (folder / "config.json").mkdir()
    refuse(folder, "config.json")


def test_missing_and_misshapen_tensors(tmp_path: Path) -> None:
    tensors = random_tensors(TinyLlama())
    lacking = {k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}
    refuse(write_llama(tmp_path, TinyLlama(), lacking), "1 of 21", "layers.1.mlp.up_proj.weight")
    refuse(write_llama(tmp_path, TinyLlama(), {}), "21 of 21", "and 17 more")
    name = "model.layers.0.mlp.down_proj.weight"
    wrong = {**tensors, name: tensors[name].T}
    refuse(write_llama(tmp_path, TinyLlama(), wrong), name, "[48, 32]", "[32, 48]")
    refuse(write_llama(tmp_path, TinyLlama(), {**tensors, name: tensors[name][0]}), name, "[48]")
    bias = {**tensors, "model.layers.0.self_attn.q_proj.bias": tensors["model.norm.weight"]}
    refuse(write_llama(tmp_path, TinyLlama(), bias), "q_proj.bias")


def test_tensors_no_llama_has_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    Checkpoint(write_llama(tmp_path, TinyLlama(), {**random_tensors(TinyLlama()), **extra}))
    assert not caplog.records  # old checkpoints carry these; they say nothing new
    extra = {"model.layers.2.mlp.up_proj.weight": np.ones((2, 2), np.float32)}
    Checkpoint(write_llama(tmp_path, TinyLlama(), {**random_tensors(TinyLlama()), **extra}))
    assert "layers.2.mlp.up_proj.weight" in caplog.text
