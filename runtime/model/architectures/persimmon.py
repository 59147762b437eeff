"""Persimmon: layer norms, norms of queries and keys, heads that turn in part, the square of a ReLU.

Neurons have no gate; all matrices have biases. One matrix holds q, k and v, of each head its query,
key and value. The defaults are those transformers gives a Persimmon.
"""

from hotcold.runtime.model.architectures.base import Architecture, Source, Sources
from hotcold.runtime.model.architectures.hf_config import Config
from hotcold.runtime.model.architectures.llama_like import (
    head_norm_sources,
    head_rows,
    norm_sources,
    read_llama_like,
)
from hotcold.runtime.model.spec import DType, ModelSpec


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a Persimmon with the square of a ReLU."""
    config.require_relu("hidden_act", "relu2", "relu2")
    for key in ("num_key_value_heads", "head_dim"):
        if config.data.get(key) is not None:
            raise config.refuse(
                f"{key} is {config.data[key]!r:.80}; a Persimmon has no such key, remove it"
            )
    return read_llama_like(
        config,
        dtype,
        "persimmon",
        context=16384,
        eps=("layer_norm_eps", 1e-5),
        turned=0.5,
        norm="layer",
        gated=False,
        activation="relu2",
        biases=True,
        attention_biases="",
        qk_norm=config.flag("qk_layernorm", True),
    )


def sources(spec: ModelSpec, config: Config) -> Sources:
    """Checkpoint tensors behind each tensor of a bundle."""
    d, n, size = spec.d_model, spec.n_neurons, spec.head_dim
    of_head = (head_rows(spec), head_rows(spec), (range(size),))  # of query, key and value
    rows = tuple(
        range((3 * head + at) * size + part.start, (3 * head + at) * size + part.stop)
        for at, parts in enumerate(of_head)
        for head in range(spec.n_heads)
        for part in parts
    )
    parts: Sources = {
        "embed": (Source("model.embed_tokens.weight", (spec.vocab_size, d)),),
        "head": (Source("lm_head.weight", (spec.vocab_size, d)),),
        **norm_sources("final_norm", "model.final_layernorm", spec),
    }
    for i in range(spec.n_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        parts |= norm_sources(f"{name}.attention_norm", f"{source}.input_layernorm", spec)
        parts |= norm_sources(f"{name}.ffn_norm", f"{source}.post_attention_layernorm", spec)
        parts |= {
            f"{name}.qkv": (Source(f"{attention}.query_key_value.weight", (3 * d, d), rows),),
            f"{name}.qkv_bias": (Source(f"{attention}.query_key_value.bias", (3 * d,), rows),),
            f"{name}.o": (Source(f"{attention}.dense.weight", (d, d)),),
            f"{name}.o_bias": (Source(f"{attention}.dense.bias", (d,)),),
            f"{name}.gate": (Source(f"{mlp}.dense_h_to_4h.weight", (n, d)),),
            f"{name}.bias": (Source(f"{mlp}.dense_h_to_4h.bias", (n,)),),
            f"{name}.down": (Source(f"{mlp}.dense_4h_to_h.weight", (d, n)),),
            f"{name}.ffn_bias": (Source(f"{mlp}.dense_4h_to_h.bias", (d,)),),
        }
        if spec.qk_norm:
            parts |= head_norm_sources(name, f"{attention}.{{}}_layernorm", spec)
    return parts


ARCHITECTURE = Architecture("persimmon", "Persimmon", "PersimmonForCausalLM", read_spec, sources)
