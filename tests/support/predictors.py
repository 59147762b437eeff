"""What predictor tests share: a model seen through the oracle's weights, and random predictors."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from support.oracle import Oracle

from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.predictors.predictor import ModelView, PredictorLayer


def spec_of(oracle: Oracle, dtype: Literal["float32", "float16"] = "float16") -> ModelSpec:
    """The spec of an oracle's model, as far as predictors look at it."""
    config = oracle.config
    heads = int(config["num_attention_heads"])
    return ModelSpec(
        architecture="llama",
        n_layers=oracle.n_layers,
        d_model=int(config["hidden_size"]),
        n_neurons=oracle.n_neurons,
        n_heads=heads,
        n_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
        vocab_size=int(config["vocab_size"]),
        max_context=int(config["max_position_embeddings"]),
        norm_eps=float(config["rms_norm_eps"]),
        rope_theta=10000.0,
        tied=bool(config["tie_word_embeddings"]),
        dtype=dtype,
    )


@dataclass(frozen=True)
class OracleStore:
    """A weight store in the shape predictors need, over the oracle's tensors."""

    oracle: Oracle

    def neuron_rows(self, layer: int, part: Literal["gate", "up", "down"]) -> Any:
        weight = self.oracle.layer(layer, f"mlp.{part}_proj")
        rows_ND = weight.T if part == "down" else weight
        return np.ascontiguousarray(rows_ND.astype(np.float32))

    def neuron_biases(self, layer: int) -> Any:
        return np.zeros(self.oracle.n_neurons, np.float32)

    def float32(self, name: str) -> Any:
        _, layer, kind = name.split(".")
        if kind != "ffn_norm":
            raise KeyError(name)
        return self.oracle.layer(int(layer), "post_attention_layernorm").astype(np.float32)


def view_of(oracle: Oracle, dtype: Literal["float32", "float16"] = "float16") -> ModelView:
    """A ModelView without a bundle."""
    return ModelView(spec_of(oracle, dtype), OracleStore(oracle))


def random_oracle(seed: int = 0, layers: int = 2, width: int = 24, neurons: int = 40) -> Oracle:
    """A random model, its norms away from 1."""
    rng = np.random.default_rng(seed)
    config = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": neurons,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "vocab_size": 50,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    shapes = {
        "self_attn.q_proj": (24, width),
        "self_attn.k_proj": (12, width),
        "self_attn.v_proj": (12, width),
        "self_attn.o_proj": (width, 24),
        "mlp.gate_proj": (neurons, width),
        "mlp.up_proj": (neurons, width),
        "mlp.down_proj": (width, neurons),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    tensors = {"model.norm.weight": 1 + 0.3 * rng.standard_normal(width)}
    tensors["model.embed_tokens.weight"] = rng.standard_normal((50, width))
    for layer in range(layers):
        for name, shape in shapes.items():
            value = 0.3 * rng.standard_normal(shape) + (1.0 if "norm" in name else 0.0)
            tensors[f"model.layers.{layer}.{name}.weight"] = value.astype(np.float32).astype(float)
    return Oracle(config, tensors)


def random_layers(
    spec: ModelSpec, seed: int = 0, dtype: str = "float32", bias: bool = True
) -> list[PredictorLayer]:
    """Predictors of another width in every layer."""
    rng = np.random.default_rng(seed)
    layers = []
    for index in range(spec.n_layers):
        width = 3 + 2 * index
        fc1 = rng.standard_normal((width, spec.d_model)).astype(dtype)
        fc2 = rng.standard_normal((spec.n_neurons, width)).astype(dtype)
        bias_N = rng.standard_normal(spec.n_neurons).astype(np.float32) if bias else None
        layers.append(PredictorLayer(fc1, fc2, bias_N, True, 0.25 * index, "normed"))
    return layers
