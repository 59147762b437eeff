"""Where a model's tensors lie in this process, for the native loop."""

from hotcold.native.bindings.executor import LayerAddresses, ModelAddresses
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.rotary import rotary_tables
from hotcold.runtime.weights.weights import WeightStore


def model_addresses(bundle: Bundle, store: WeightStore, context: int) -> ModelAddresses:
    """Shapes of a bundle and addresses into its store, which must outlive them.

    Args:
        bundle: the model.
        store: its weights.
        context: positions of the KV cache.
    """
    spec, record = bundle.spec, bundle.record

    def at(name: str) -> int:
        return store.address(name) if name in bundle.tensors else 0

    names = "attention_norm attention_norm_bias qkv qkv_bias o o_bias ffn_norm ffn_norm_bias"
    layers = [
        LayerAddresses(
            records=at(f"layers.{i}.neurons"),
            **{name: at(f"layers.{i}.{name}") for name in f"{names} ffn_bias".split()},
        )
        for i in range(spec.n_layers)
    ]
    rotary = spec.positions == "rotary"
    cos_PE, sin_PE = rotary_tables(spec, context) if rotary else (None, None)
    ends = "embed final_norm final_norm_bias positions project_in project_out".split()
    return ModelAddresses(
        heads=spec.n_heads,
        kv_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        d=spec.d_model,
        n=spec.n_neurons,
        vocab=spec.vocab_size,
        context=context,
        norm=spec.norm,
        norm_eps=spec.norm_eps,
        post_norm=spec.post_norm,
        embed_dim=spec.embed_width,
        dtype=spec.dtype,
        **vars(record),
        layers=layers,
        head=at("embed" if spec.tied else "head"),
        **{name: at(name) for name in ends},
        cos_PE=cos_PE,
        sin_PE=sin_PE,
    )
