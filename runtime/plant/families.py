"""What differs between architectures: the names and orientation of tensors in a checkpoint.

A family turns a planted layer into the tensors of a Hugging Face checkpoint and a spec into its
config.json. Used by `writers`; the construction itself is in `planting`. A new architecture is one
more class here and, where its neurons have biases, a place for them in `PlantedLayer`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from hotcold.runtime.errors import ConfigError
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.plant.planting import PlantedLayer
from hotcold.runtime.plant.signal import Signal

Make = Callable[[], torch.Tensor]


class Family(Protocol):
    """One architecture's spelling."""

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """What config.json says."""
        ...

    def layer_tensors(self, spec: ModelSpec, index: int, layer: PlantedLayer) -> dict[str, Make]:
        """A layer's tensors by name, each made when it is asked for."""
        ...

    def layer_shapes(self, spec: ModelSpec, index: int) -> dict[str, tuple[int, ...]]:
        """Their shapes, in the same order."""
        ...

    def end_tensors(self, spec: ModelSpec, signal: Signal) -> dict[str, torch.Tensor]:
        """What is not part of a layer."""
        ...


class Llama:
    """Llama with ReLU: gate, up and down without biases, RMS norms of ones."""

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """As transformers writes it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "relu",
            "hidden_size": spec.d_model,
            "intermediate_size": spec.n_neurons,
            "num_hidden_layers": spec.n_layers,
            "num_attention_heads": spec.n_heads,
            "num_key_value_heads": spec.n_kv_heads,
            "head_dim": spec.head_dim,
            "max_position_embeddings": spec.max_context,
            "rms_norm_eps": spec.norm_eps,
            "rope_theta": spec.rope_theta,
            "vocab_size": spec.vocab_size,
            "tie_word_embeddings": spec.tied,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": spec.bos_ids[0],
            "eos_token_id": spec.eos_ids[0],
            "torch_dtype": spec.dtype,
        }

    def layer_shapes(self, spec: ModelSpec, index: int) -> dict[str, tuple[int, ...]]:
        """See Family."""
        d, n, q, kv = spec.d_model, spec.n_neurons, spec.q_dim, spec.kv_dim
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (d,),
            "self_attn.q_proj": (q, d),
            "self_attn.k_proj": (kv, d),
            "self_attn.v_proj": (kv, d),
            "self_attn.o_proj": (d, q),
            "post_attention_layernorm": (d,),
            "mlp.gate_proj": (n, d),
            "mlp.up_proj": (n, d),
            "mlp.down_proj": (d, n),
        }
        return {f"model.layers.{index}.{name}.weight": shape for name, shape in shapes.items()}

    def layer_tensors(self, spec: ModelSpec, index: int, layer: PlantedLayer) -> dict[str, Make]:
        """See Family."""
        q, k, v = layer.qkv.split([spec.q_dim, spec.kv_dim, spec.kv_dim])
        makes: list[Make] = [
            lambda: torch.ones(spec.d_model, dtype=layer.qkv.dtype),
            lambda: q,
            lambda: k,
            lambda: v,
            lambda: layer.o,
            lambda: torch.ones(spec.d_model, dtype=layer.qkv.dtype),
            lambda: layer.gate_ND,
            lambda: layer.up_ND,
            lambda: layer.down_ND.T,
        ]
        return dict(zip(self.layer_shapes(spec, index), makes, strict=True))

    def end_tensors(self, spec: ModelSpec, signal: Signal) -> dict[str, torch.Tensor]:
        """See Family."""
        return {
            "model.embed_tokens.weight": signal.embed_VD,
            "lm_head.weight": signal.head_VD,
            "model.norm.weight": torch.ones(spec.d_model, dtype=signal.embed_VD.dtype),
        }


FAMILIES: dict[str, Family] = {"llama": Llama()}


def find_family(name: str) -> Family:
    """The spelling of an architecture.

    Raises:
        ConfigError: it cannot be planted yet.
    """
    if name not in FAMILIES:
        raise ConfigError(
            f"architecture {name!r} cannot be planted yet; choose a shape of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]
