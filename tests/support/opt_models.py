"""Small random OPT checkpoints as Hugging Face folders: every size's form, and ways to be wrong."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from support.models import to_raw, write_safetensors, write_sharded


@dataclass(frozen=True)
class TinyOpt:
    """Shape and spelling of a checkpoint to write.

    Args:
        d, layers, neurons, heads, vocab, context: sizes; odd ones are fine, heads divide d.
        embed: word_embed_proj_dim; None: d, and not projected.
        pre_norm: False: opt-350m's order, without a final norm.
        biases: enable_bias.
        affine: layer_norm_elementwise_affine.
        tied: the head is the embedding.
        dtype: of all tensors.
        shards: files.
        bare: names as saved from the base model, without "model." and head.
        config: entries that overwrite config.json's; None removes one.
        tokenizer: "json", "files" (vocab.json and merges.txt, as OPT's repositories), or None.
        seed: of the weights.
    """

    d: int = 32
    layers: int = 2
    neurons: int = 48
    heads: int = 4
    vocab: int = 300
    context: int = 64
    embed: int | None = None
    pre_norm: bool = True
    biases: bool = True
    affine: bool = True
    tied: bool = True
    dtype: str = "float32"
    shards: int = 1
    bare: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = "json"
    seed: int = 0


FORMS = {
    "even": TinyOpt(),
    "odd": TinyOpt(d=35, layers=3, neurons=51, heads=5, vocab=301),
    "350m": TinyOpt(d=40, layers=3, neurons=45, heads=4, embed=24, pre_norm=False, seed=1),
    "350m, wider embeddings": TinyOpt(d=21, heads=3, embed=50, pre_norm=False, seed=2),
    "projected, pre-norm, untied": TinyOpt(d=30, heads=3, embed=17, tied=False, seed=3),
    "no biases": TinyOpt(d=36, biases=False, seed=4),
    "no norm parameters": TinyOpt(d=24, affine=False, seed=5),
    "no final norm": TinyOpt(config={"_remove_final_layer_norm": True}, seed=6),
    "float16": TinyOpt(d=45, heads=3, neurons=77, dtype="float16", shards=2, seed=7),
    "bfloat16": TinyOpt(d=40, neurons=64, dtype="bfloat16", bare=True, seed=8),
}


def random_opt_tensors(model: TinyOpt) -> dict[str, NDArray[np.float32]]:
    """All tensors by Hugging Face name, float32."""
    rng = np.random.default_rng(model.seed)
    d, n = model.d, model.neurons
    width = model.embed or d
    tensors: dict[str, NDArray[np.float32]] = {}

    def matrix(name: str, rows: int, columns: int, bias: bool = False, size: float = 1) -> None:
        values = rng.standard_normal((rows, columns)) * size / np.sqrt(columns)
        tensors[f"{name}.weight"] = values.astype(np.float32)
        if bias and model.biases:
            tensors[f"{name}.bias"] = (0.2 * rng.standard_normal(rows)).astype(np.float32)

    def norm(name: str) -> None:
        if model.affine:
            for part, mean in (("weight", 1.0), ("bias", 0.0)):
                values = mean + 0.1 * rng.standard_normal(d)
                tensors[f"{name}.{part}"] = values.astype(np.float32)

    decoder = "model.decoder"
    matrix(f"{decoder}.embed_tokens", model.vocab, width, size=4)
    matrix(f"{decoder}.embed_positions", model.context + 2, d, size=2)
    if model.embed not in (None, d):
        matrix(f"{decoder}.project_in", d, width)
        matrix(f"{decoder}.project_out", width, d)
    if not model.tied:
        matrix("lm_head", model.vocab, width)
    if model.pre_norm and not model.config.get("_remove_final_layer_norm"):
        norm(f"{decoder}.final_layer_norm")
    for i in range(model.layers):
        p = f"{decoder}.layers.{i}"
        norm(f"{p}.self_attn_layer_norm")
        norm(f"{p}.final_layer_norm")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            matrix(f"{p}.self_attn.{part}", d, d, bias=True)
        matrix(f"{p}.fc1", n, d, bias=True)
        matrix(f"{p}.fc2", d, n, bias=True)
    return tensors


def opt_config(model: TinyOpt) -> dict[str, Any]:
    """What config.json says."""
    config: dict[str, Any] = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "hidden_size": model.d,
        "ffn_dim": model.neurons,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "max_position_embeddings": model.context,
        "word_embed_proj_dim": model.embed or model.d,
        "do_layer_norm_before": model.pre_norm,
        "vocab_size": model.vocab,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": model.dtype,
    }
    # The others are what transformers takes where config.json says nothing, as the real ones do.
    if not model.biases:
        config["enable_bias"] = False
    if not model.affine:
        config["layer_norm_elementwise_affine"] = False
    if not model.tied:
        config["tie_word_embeddings"] = False
    config |= model.config
    return {key: value for key, value in config.items() if value is not None}


def gpt2_tokenizer() -> tokenizers.Tokenizer:
    """Byte level with a few merges, as OPT's: <s> <pad> </s> <unk> first, `</s>` before a text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges)]
    vocab = {text: i for i, text in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    return tokenizer


def write_opt(
    folder: Path,
    model: TinyOpt | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        folder: created; may exist.
        model: shape and spelling; None: TinyOpt().
        tensors: float32 weights by Hugging Face name; None: random ones.
    """
    model = model or TinyOpt()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(opt_config(model)))
    values = random_opt_tensors(model) if tensors is None else tensors
    raw = {
        name.removeprefix("model.") if model.bare else name: to_raw(value, model.dtype)
        for name, value in values.items()
    }
    if model.shards == 1:
        write_safetensors(folder / "model.safetensors", raw)
    else:
        write_sharded(folder, raw, model.shards)
    if model.tokenizer == "json":
        gpt2_tokenizer().save(str(folder / "tokenizer.json"))
    elif model.tokenizer == "files":
        gpt2_tokenizer().model.save(str(folder))
    if model.tokenizer is not None:
        special = {"content": "</s>", "__type": "AddedToken", "normalized": True}
        config = {"add_prefix_space": False, "add_bos_token": True, "pad_token": "<pad>"}
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), special)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
