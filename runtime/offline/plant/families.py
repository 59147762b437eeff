"""config.json of a planted model in the form of each architecture's Hugging Face folder.

The tensors need no table here: runtime/model/architectures says of which checkpoint tensors a
bundle's are made, and `writers` uses that in the other direction. A new architecture is one more
function here.
"""

from collections.abc import Callable
from typing import Any

from hotcold.runtime.model.block import PRE_NORM, norms
from hotcold.runtime.model.spec import ModelSpec


def _shared(spec: ModelSpec) -> dict[str, Any]:
    return {
        "hidden_size": spec.d_model,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "max_position_embeddings": spec.max_context,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": spec.bos_ids[0],
        "eos_token_id": spec.eos_ids[0],
        "pad_token_id": None,
        "torch_dtype": spec.dtype,
    }


def _llama(spec: ModelSpec) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "relu",
        "intermediate_size": spec.n_neurons,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        **_shared(spec),
    }


def _opt(spec: ModelSpec) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "ffn_dim": spec.n_neurons,
        "word_embed_proj_dim": spec.embed_width,
        "do_layer_norm_before": spec.block == PRE_NORM,
        "enable_bias": spec.biases,
        "layer_norm_elementwise_affine": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
        **_shared(spec),
    }


def _falcon(spec: ModelSpec) -> dict[str, Any]:
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "activation": "relu",
        "ffn_hidden_size": spec.n_neurons,
        "new_decoder_architecture": True,
        "num_kv_heads": spec.n_kv_heads,
        "num_ln_in_parallel_attn": len(norms(spec.block)),
        "parallel_attn": True,
        "alibi": False,
        "bias": spec.biases,
        "layer_norm_epsilon": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        **_shared(spec),
    }


CONFIGS: dict[str, Callable[[ModelSpec], dict[str, Any]]] = {
    "llama": _llama,
    "opt": _opt,
    "falcon": _falcon,
}


def hf_config(spec: ModelSpec) -> dict[str, Any]:
    """config.json of a planted model, as transformers writes it."""
    return CONFIGS[spec.architecture](spec)
