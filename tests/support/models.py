"""Small random Llama checkpoints as Hugging Face folders, of any shape and any way to be wrong.

Weights are scaled so that about half of the neurons fire and logits are of order one. The writer
of safetensors is independent of the reader under test.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class TinyLlama:
    """Shape and spelling of a checkpoint to write.

    Args:
        d, layers, neurons, heads, kv_heads, vocab, context: sizes; odd ones are fine.
        head_dim: None: d // heads, and not written to config.json.
        tied: the head is the embedding.
        dtype: of all tensors.
        shards: files; 1: model.safetensors alone.
        hidden_act: anything but "relu" is to be refused.
        new_keys: `dtype` and `rope_parameters` instead of `torch_dtype` and `rope_theta`.
        rope: further entries of the rope dict ("rope_type", "factor"...).
        config: entries that overwrite config.json's; None removes one.
        tokenizer: "bpe" (byte level), "word", or None for no tokenizer.json.
        seed: of the weights.
    """

    d: int = 32
    layers: int = 2
    neurons: int = 48
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 300
    context: int = 64
    head_dim: int | None = None
    tied: bool = False
    dtype: str = "float32"
    shards: int = 1
    hidden_act: str = "relu"
    rope_theta: float = 10000.0
    new_keys: bool = False
    rope: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = "bpe"
    seed: int = 0

    @property
    def head(self) -> int:
        """Elements of a head."""
        return self.head_dim or self.d // self.heads


def to_raw(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Values in a dtype; bfloat16 as uint16 (cut, not rounded: they are random anyway)."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def random_tensors(model: TinyLlama) -> dict[str, NDArray[np.float32]]:
    """All tensors by Hugging Face name, float32."""
    rng = np.random.default_rng(model.seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = rng.standard_normal((rows, columns), np.float32)
        values /= np.sqrt(columns)
        return values

    def norm() -> NDArray[np.float32]:
        return (1 + 0.1 * rng.standard_normal(model.d)).astype(np.float32)

    d, n, hd = model.d, model.neurons, model.head
    tensors = {"model.embed_tokens.weight": matrix(model.vocab, d), "model.norm.weight": norm()}
    if not model.tied:
        tensors["lm_head.weight"] = matrix(model.vocab, d)
    for i in range(model.layers):
        p = f"model.layers.{i}"
        tensors |= {
            f"{p}.input_layernorm.weight": norm(),
            f"{p}.post_attention_layernorm.weight": norm(),
            f"{p}.self_attn.q_proj.weight": matrix(model.heads * hd, d),
            f"{p}.self_attn.k_proj.weight": matrix(model.kv_heads * hd, d),
            f"{p}.self_attn.v_proj.weight": matrix(model.kv_heads * hd, d),
            f"{p}.self_attn.o_proj.weight": matrix(d, model.heads * hd),
            f"{p}.mlp.gate_proj.weight": matrix(n, d),
            f"{p}.mlp.up_proj.weight": matrix(n, d),
            f"{p}.mlp.down_proj.weight": matrix(d, n),
        }
    return tensors


def config_json(model: TinyLlama) -> dict[str, Any]:
    """What config.json says."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.d,
        "intermediate_size": model.neurons,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "hidden_act": model.hidden_act,
        "max_position_embeddings": model.context,
        "rms_norm_eps": 1e-5,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied,
        "attention_bias": False,
        "mlp_bias": False,
    }
    if model.vocab > 2:
        config |= {"bos_token_id": 1, "eos_token_id": 2}
    if model.head_dim is not None:
        config["head_dim"] = model.head_dim
    if model.new_keys:
        rope = {"rope_theta": model.rope_theta, "rope_type": "default", **model.rope}
        config |= {"dtype": model.dtype, "rope_parameters": rope}
    else:
        rope_scaling = dict(model.rope) or None
        config |= {"torch_dtype": model.dtype, "rope_theta": model.rope_theta}
        config["rope_scaling"] = rope_scaling
    config |= model.config
    return {key: value for key, value in config.items() if value is not None}


def write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], codes: Mapping[str, str] | None = None
) -> None:
    """Write raw arrays; uint16 means bfloat16 unless codes says otherwise."""
    plain = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, raw in tensors.items():
        code = (codes or {}).get(name) or plain[raw.dtype.name]
        header[name] = {
            "dtype": code,
            "shape": list(raw.shape),
            "data_offsets": [end, end + raw.nbytes],
        }
        end += raw.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for raw in tensors.values():
            file.write(np.ascontiguousarray(raw).tobytes())


def write_sharded(folder: Path, tensors: Mapping[str, NDArray[Any]], shards: int) -> None:
    """Write tensors as model-0000i-of-0000n.safetensors with their index."""
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    size = sum(raw.nbytes for raw in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def byte_level_tokenizer() -> tokenizers.Tokenizer:
    """259 tokens: <unk>, <s>, </s> and every byte; `<s>` first."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return _finish(tokenizer)


def word_tokenizer(vocab: int) -> tokenizers.Tokenizer:
    """Words w3, w4, ... up to the vocabulary; anything else is <unk>; `<s>` first where it fits."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, vocab))][:vocab]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return _finish(tokenizer) if vocab > 2 else tokenizer


def _finish(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def write_llama(
    folder: Path,
    model: TinyLlama | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        folder: created; may exist.
        model: shape and spelling; None: TinyLlama().
        tensors: float32 weights by Hugging Face name; None: random ones.
    """
    model = model or TinyLlama()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(model)))
    values = random_tensors(model) if tensors is None else tensors
    raw = {name: to_raw(value, model.dtype) for name, value in values.items()}
    if model.shards == 1:
        write_safetensors(folder / "model.safetensors", raw)
    else:
        write_sharded(folder, raw, model.shards)
    if model.tokenizer is not None:
        small = model.tokenizer == "word" or model.vocab < 259
        tokenizer = word_tokenizer(model.vocab) if small else byte_level_tokenizer()
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
        )
    return folder


CONTEXT = 256  # of models that are prompted
PROMPTED = {
    "odd": TinyLlama(
        d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301, context=CONTEXT
    ),
    "float16": TinyLlama(
        d=192, layers=3, neurons=1300, heads=6, kv_heads=2, dtype="float16", seed=3, context=CONTEXT
    ),
    "bfloat16": TinyLlama(
        d=64, neurons=2500, heads=4, kv_heads=2, dtype="bfloat16", seed=2, context=CONTEXT
    ),
}
