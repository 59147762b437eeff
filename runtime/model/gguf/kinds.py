"""The kinds of GGUF files that are read: keys and tensors by the names of a checkpoint.

So a GGUF file is a checkpoint of the same architecture (runtime/model/architectures), whose file
says what its values mean. A new kind is a row of KINDS. Sources: llama.cpp's gguf package
(constants, tensor_mapping) and conversion scripts; PowerInfer's converter.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.gguf.header import PLAIN, Header

ACTIVATION, THRESHOLD = "hotcold.hidden_act", "hotcold.hidden_act_param"  # hotcold's own files have
_ENDS = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FALCON_ENDS = {
    "transformer.word_embeddings": "token_embd",
    "lm_head": "output",
    "transformer.ln_f": "output_norm",
}
_FALCON_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_FALCON_40B = {"ln_mlp": "attn_norm", "ln_attn": "attn_norm_2"}


@dataclass(frozen=True)
class Kind:
    """What a file of one general.architecture has.

    Args:
        hf_class: of the checkpoint it was converted from.
        activation: in PowerInfer's files, and else in llama.cpp's, where no key says it.
        interleaved: rows of query and key heads are in pairs, not in halves.
        norm_plus: the converter added this to every norm's weight.
        ends, layer, layers: HF name -> GGUF name, and the HF name before a layer's number.
        config: entries that config.json needs besides.
    """

    hf_class: str
    activation: tuple[str, str]
    interleaved: bool = False
    norm_plus: float = 0.0
    ends: Mapping[str, str] = field(default_factory=lambda: _ENDS)
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    layers: str = "model.layers"
    config: Mapping[str, Any] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "llama": Kind("LlamaForCausalLM", ("relu", "silu"), interleaved=True),
    "bamboo": Kind("BambooForCausalLM", ("relu", "relu"), interleaved=True),
    "arcee": Kind("ArceeForCausalLM", ("relu2", "relu2"), interleaved=True),
    "nemotron": Kind("NemotronForCausalLM", ("relu2", "relu2"), norm_plus=1.0),
    "falcon": Kind(
        "FalconForCausalLM",
        ("relu", "gelu"),
        ends=_FALCON_ENDS,
        layer=_FALCON_LAYER,
        layers="transformer.h",
    ),
    "qwen2": Kind("Qwen2ForCausalLM", ("relu", "silu")),
    "qwen3": Kind("Qwen3ForCausalLM", ("relu", "silu")),
}
_KEYS = {  # of config.json, from {architecture}.
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "num_experts": "expert_count",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "norm_eps": "attention.layer_norm_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "intermediate_size": "feed_forward_length",
    "ffn_hidden_size": "feed_forward_length",
    "num_key_value_heads": "attention.head_count_kv",
    "num_kv_heads": "attention.head_count_kv",
}
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def kind_of(header: Header) -> tuple[str, Kind]:
    """A file's architecture.

    Raises:
        CheckpointError: none of ours.
    """
    name = header.keys.get("general.architecture")
    if not isinstance(name, str) or name not in KINDS:
        raise CheckpointError(
            f"{header.path}: general.architecture {name!r:.80} is not supported; supported: "
            f"{', '.join(KINDS)}"
        )
    return name, KINDS[name]


def config_of(header: Header) -> dict[str, Any]:
    """What config.json of the checkpoint behind a file would say; values are not checked."""
    name, kind = kind_of(header)
    keys, config = header.keys, {"architectures": [kind.hf_class], **kind.config}
    for theirs, ours in _KEYS.items():
        if (value := keys.get(f"{name}.{ours}")) is not None:
            config[theirs] = _short(value)
    embed = header.tensors.get("token_embd.weight")
    if embed is not None:  # rows beyond the vocabulary's are padding
        config["vocab_size"] = embed.shape[0]
    for theirs, ours in _TOKENS.items():
        if (value := keys.get(f"tokenizer.ggml.{ours}_token_id")) is not None:
            config[theirs] = value
    eot = keys.get("tokenizer.ggml.eot_token_id")
    if eot is not None and eot != config.get("eos_token_id"):
        config["eos_token_id"] = [config["eos_token_id"], eot] if "eos_token_id" in config else eot
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    said = keys.get(ACTIVATION, kind.activation[not header.powerinfer])
    config["hidden_act"] = config["activation"] = said
    if (parameter := keys.get(THRESHOLD)) is not None:
        config["hidden_act_param"] = _short(parameter)
    if any(tensor.kind not in PLAIN for tensor in header.tensors.values()):
        config["torch_dtype"] = "float16"  # what quantised matrices become
    config |= _rope(header, name, config)
    return config | (_falcon(header, config) if name == "falcon" else {})


def _short(value: Any) -> Any:  # noqa: ANN401 - a key's value
    """A float32 as the number that was meant: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _falcon(header: Header, config: dict[str, Any]) -> dict[str, Any]:
    """7B has one key head and one norm; 40B and 11B have more heads, 40B a norm for each part."""
    new = config.get("num_kv_heads", 1) != 1
    norms = {"num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in header.tensors else 1}
    return {"new_decoder_architecture": new, "multi_query": True} | (norms if new else {})


def _rope(header: Header, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Partial rotation and scaling, as config.json has them."""
    said: dict[str, Any] = {}
    keys = header.keys
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    turned = keys.get(f"{name}.rope.dimension_count")
    whole = config.get("head_dim")
    if whole is None and type(width) is int and type(heads) is int and heads:
        whole = width // heads
    if type(turned) is int and type(whole) is int and whole and turned != whole:
        said["partial_rotary_factor"] = turned / whole
    scaling = keys.get(f"{name}.rope.scaling.type", "none")
    factor = keys.get(f"{name}.rope.scaling.factor", keys.get(f"{name}.rope.scale_linear"))
    if scaling == "none" and factor not in (None, 0, 1):
        scaling = "linear"  # the older key alone
    if scaling != "none":
        original = keys.get(f"{name}.rope.scaling.original_context_length")
        said["rope_scaling"] = {
            "rope_type": scaling,
            "factor": _short(factor),
            **({} if original is None else {"original_max_position_embeddings": original}),
        }
    return said


def llama3_scaling(factors: Any, theta: float, head_dim: int) -> dict[str, Any] | None:  # noqa: ANN401
    """The llama3 scaling that gives these frequency divisors [head_dim / 2] of rope_freqs.weight.

    llama.cpp's converter keeps them in place of its four parameters, of which two never vary. None:
    another scaling gave them.
    """
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    factor = float(str(np.float32(np.max(factors))))
    for original in (8192, 4096, 2048, 16384, 32768):
        turns = original * frequencies / (2 * math.pi)
        keep = np.clip((turns - 1.0) / (4.0 - 1.0), 0.0, 1.0)
        if np.allclose(1 / ((1 - keep) / factor + keep), factors, rtol=1e-5):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    return None


def stored_name(kind: Kind, name: str, powerinfer: bool, has: Mapping[str, Any]) -> str | None:
    """The tensor of a GGUF file behind one of a checkpoint; None where the kind has none.

    PowerInfer keeps down as rows, under a name of its own.
    """
    stem, _, part = name.rpartition(".")
    if stem in kind.ends:
        return f"{kind.ends[stem]}.{part}"
    match = re.fullmatch(rf"{re.escape(kind.layers)}\.(\d{{1,6}})\.(.+)", stem)
    if match is None:
        return None
    table = dict(kind.layer)
    if "blk.0.attn_norm_2.weight" in has:
        table |= _FALCON_40B
        del table["input_layernorm"]
    theirs = table.get(match[2])
    if theirs is None:
        return None
    down_rows = f"blk.{match[1]}.{theirs}_t.{part}"
    return down_rows if powerinfer and down_rows in has else f"blk.{match[1]}.{theirs}.{part}"
