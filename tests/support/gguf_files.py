"""GGUF files of Hugging Face folders by the gguf package, not by the project's own writer."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open

Kind = gguf.GGMLQuantizationType
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored_name(name: str) -> str:
    """GGUF's name of a Llama's tensor."""
    stem, _, part = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{part}"
    return f"{NAMES[stem]}.{part}"


def permuted(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """llama.cpp's converter: LlamaModel.permute."""
    shape = (heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape)


def tensors_of(folder: Path) -> dict[str, NDArray[np.float32]]:
    """A folder's tensors in float32 by Hugging Face name."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).float().numpy() for name in file.keys()}


def write(
    path: Path,
    folder: Path,
    kind: Callable[[str], Kind] | Kind = Kind.F32,
    arch: str = "llama",
    extra: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    split: int = 1,
) -> Path:
    """A GGUF file of a Llama-like folder with a byte-level tokenizer; returns the (first) file.

    Args:
        path: of the file.
        folder: config.json, model.safetensors, tokenizer.json.
        kind: type of every matrix, or by GGUF name.
        arch: general.architecture.
        extra: further keys: str, int, float or bool.
        tensors: float32 by Hugging Face name; None: the folder's.
        split: files, tensors in turn.
    """
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    made: dict[str, tuple[NDArray[Any], Kind]] = {}
    for name, given in (tensors_of(folder) if tensors is None else tensors).items():
        ours, values = stored_name(name), given
        if ".attn_q." in ours or ".attn_k." in ours:
            values = permuted(given, heads if ".attn_q." in ours else kv_heads)
        own = (kind if isinstance(kind, Kind) else kind(ours)) if values.ndim == 2 else Kind.F32
        made[ours] = (quantize(np.ascontiguousarray(values, np.float32), own), own)
    files = [path]
    if split > 1:
        stem = path.name.removesuffix(".gguf")
        files = [path.with_name(f"{stem}-{i + 1:05d}-of-{split:05d}.gguf") for i in range(split)]
    for at, file in enumerate(files):
        writer = gguf.GGUFWriter(file, arch)
        if at == 0:
            _keys(writer, config, folder, arch)
            for key, value in (extra or {}).items():
                add = {str: "string", bool: "bool", int: "uint32", float: "float32"}[type(value)]
                getattr(writer, f"add_{add}")(key, value)
            if split > 1:
                writer.add_uint16("split.count", split)
                writer.add_int32("split.tensors.count", len(made))
        for name in list(made)[at::split]:
            writer.add_tensor(name, made[name][0], raw_dtype=made[name][1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files[0]


def _keys(writer: Any, config: Mapping[str, Any], folder: Path, arch: str) -> None:
    numbers = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
    }
    if "head_dim" in config:
        numbers |= {"attention.key_length": config["head_dim"]}
        numbers |= {"attention.value_length": config["head_dim"]}
    for key, value in numbers.items():
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32(f"{arch}.rope.freq_base", config["rope_theta"])
    if not (folder / "tokenizer.json").is_file():
        return
    saved = json.loads((folder / "tokenizer.json").read_text())
    vocab, special = saved["model"]["vocab"], {one["id"] for one in saved["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if at in special else 1 for at in range(len(tokens))])
    merges = saved["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
