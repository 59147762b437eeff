"""Where a model's tensors lie in this process, for the native loop."""

from typing import Any

from hotcold.runtime.engine.gpu_memory import sizes
from hotcold.runtime.model.block import operators
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.rotary import rotary_tables
from hotcold.runtime.weights.weights import WeightStore

# Tensors by their names in a bundle, and the fields of hc_layer and hc_model that point to them.
VECTORS = "attention_norm attention_norm_bias o_bias ffn_norm ffn_norm_bias ffn_bias"
LAYER = {name: f"{name}_D" for name in VECTORS.split()}
LAYER |= {name: f"{name}_E" for name in ("q_norm", "k_norm", "q_norm_bias", "k_norm_bias")}
LAYER |= {name: name for name in ("qkv", "qkv_bias", "o")} | {"neurons": "records"}
ENDS = {name: name for name in ("embed", "head", "positions", "project_in", "project_out")}
ENDS |= {name: f"{name}_D" for name in ("final_norm", "final_norm_bias")}


def model_addresses(bundle: Bundle, store: WeightStore, context: int) -> dict[str, Any]:
    """Shapes of a bundle and addresses into its store, which must outlive them.

    As fields of hc_model (abi/hotcold.h); what is not there is left out.
    """
    spec = bundle.spec

    def at(names: dict[str, str], prefix: str = "") -> dict[str, int]:
        there = {name: field for name, field in names.items() if prefix + name in bundle.tensors}
        return {field: store.address(prefix + name) for name, field in there.items()}

    rotary = spec.positions == "rotary"
    cos_PE, sin_PE = rotary_tables(spec, context) if rotary else (None, None)
    ends = at(ENDS)
    return {
        "record": bundle.record.fields(),
        **sizes(spec, context),
        "norm": spec.norm,
        "activation": spec.activation,
        "activation_threshold": spec.activation_threshold,
        "norm_eps": spec.norm_eps,
        "embed_scale": spec.embed_scale,
        "block": operators(spec.block),
        "n_block": len(spec.block),
        "dtype": spec.dtype,
        "n_layers": spec.n_layers,
        "layers": [at(LAYER, f"layers.{layer}.") for layer in range(spec.n_layers)],
        "window": spec.attention_window or 0,
        "cos_PE": cos_PE,
        "sin_PE": sin_PE,
        **ends,
        "head": ends["embed" if spec.tied else "head"],
    }
