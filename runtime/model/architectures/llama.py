"""Llama with ReLU gates: RMS norms, rotary positions, gated neurons, no biases.

Knows old and new spellings of keys (`rope_theta` beside `rope_scaling`, or both inside
`rope_parameters`) and the defaults transformers gives a Llama.
"""

from typing import Any

from hotcold.runtime.model.architectures.base import Architecture, Source, Sources
from hotcold.runtime.model.architectures.hf_config import Config, eos_ids
from hotcold.runtime.model.architectures.limits import ROPE_NUMBERS, check_rope_scaling, positive
from hotcold.runtime.model.spec import DType, ModelSpec

ROPE_KEYS = ("rope_scaling", "rope_parameters")


def _rope_kind(config: Config, rope: dict[str, Any]) -> object:
    """The type of a scaling, in either spelling; null counts as absent."""
    said = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None]
    if said[1:] and said[0] != said[1]:
        raise config.refuse(
            f"the rope parameters say rope_type {said[0]!r:.40} and type {said[1]!r:.40}; keep the "
            "one that is meant"
        )
    if not said and rope.get("factor") is not None:
        raise config.refuse(
            f"the rope parameters have a factor of {rope['factor']!r:.40} and no rope_type; add "
            '"rope_type", "linear" for example, or remove the factor'
        )
    return said[0] if said else "default"


def _rope(config: Config) -> tuple[float, dict[str, Any] | None]:
    """Theta and scaling from either spelling; given in both, they must agree."""
    said = [config.data[key] for key in ROPE_KEYS if config.data.get(key)]
    read = [_read_rope(config, rope) for rope in said or [{}]]
    if read[0] != read[-1]:
        raise config.refuse(
            f"{' and '.join(ROPE_KEYS)} differ ({said[0]!r:.120} and {said[1]!r:.120}); keep the "
            "one that is meant"
        )
    return read[0]


def _read_rope(config: Config, rope: object) -> tuple[float, dict[str, Any] | None]:
    """Theta and scaling of one dict; a theta inside it wins, as in transformers."""
    if not isinstance(rope, dict):
        raise config.refuse(f"rope parameters are {rope!r:.80}, they must be an object; correct it")
    theta = config.number("rope_theta", 10000.0, 1e12)
    if rope.get("rope_theta") is not None:
        theta = rope["rope_theta"]
        if not positive(theta, 1e12):
            raise config.refuse(
                f"rope_theta is {theta!r:.80}, it must be above 0 and at most 1e12; correct it"
            )
    for partial in (rope.get("partial_rotary_factor"), config.data.get("partial_rotary_factor")):
        if partial is not None and partial != 1:
            raise config.refuse(
                f"partial_rotary_factor {partial!r:.80} is not supported; a Llama turns whole heads"
            )
    kind = _rope_kind(config, rope)
    if kind == "default":
        return float(theta), None
    scaling = {"rope_type": kind}
    scaling |= {key: rope.get(key) for key in ROPE_NUMBERS.get(str(kind), ())}
    if kind == "llama3":
        original = config.data.get("original_max_position_embeddings")
        fallback = config.data.get("max_position_embeddings")
        key = "original_max_position_embeddings"
        scaling[key] = original if original is not None else rope.get(key, fallback)
    try:
        check_rope_scaling(scaling)
    except ValueError as error:
        raise config.refuse(f"{error}; use a checkpoint that has one of these") from error
    return float(theta), scaling


def _head_dim(config: Config, d_model: int, n_heads: int) -> int:
    if config.data.get("head_dim") is None and d_model % n_heads:
        raise config.refuse(
            f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads} and "
            "head_dim is not given; correct one of them"
        )
    head_dim = config.integer("head_dim", "head_dim", d_model // n_heads)
    if head_dim % 2:
        raise config.refuse(f"head_dim {head_dim} is odd; rotary embedding turns pairs, correct it")
    return head_dim


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a plain ReLU-gated Llama."""
    config.require_relu("hidden_act", "silu")
    config.refuse_unsupported()
    for key in ("attention_bias", "mlp_bias"):
        if config.flag(key):
            raise config.refuse(f"{key} is true; biases are not supported, use a model without")
    d_model = config.integer("hidden_size", "d_model")
    n_heads = config.integer("num_attention_heads", "n_heads")
    n_kv_heads = config.integer("num_key_value_heads", "n_kv_heads", n_heads)
    if n_heads % n_kv_heads:
        raise config.refuse(
            f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}; "
            "correct one of them"
        )
    vocab_size = config.integer("vocab_size", "vocab_size")
    theta, scaling = _rope(config)
    spec = ModelSpec(
        architecture="llama",
        n_layers=config.integer("num_hidden_layers", "n_layers"),
        d_model=d_model,
        n_neurons=config.integer("intermediate_size", "n_neurons"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=_head_dim(config, d_model, n_heads),
        vocab_size=vocab_size,
        max_context=config.integer("max_position_embeddings", "max_context", 2048),
        norm_eps=config.number("rms_norm_eps", 1e-6, 1.0),
        rope_theta=theta,
        rope_scaling=scaling,
        tied=config.flag("tie_word_embeddings"),
        dtype=dtype,
        bos_ids=config.token_ids("bos_token_id", vocab_size),
        eos_ids=eos_ids(config, vocab_size),
    )
    return config.checked(spec)


def sources(spec: ModelSpec, config: Config) -> Sources:
    """Checkpoint tensors behind each tensor of a bundle."""
    d, n, q, kv = spec.d_model, spec.n_neurons, spec.q_dim, spec.kv_dim
    parts: Sources = {
        "embed": (Source("model.embed_tokens.weight", (spec.vocab_size, d)),),
        "head": (Source("lm_head.weight", (spec.vocab_size, d)),),
        "final_norm": (Source("model.norm.weight", (d,)),),
    }
    for i in range(spec.n_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        parts |= {
            f"{name}.attention_norm": (Source(f"{source}.input_layernorm.weight", (d,)),),
            f"{name}.ffn_norm": (Source(f"{source}.post_attention_layernorm.weight", (d,)),),
            f"{name}.qkv": tuple(
                Source(f"{attention}.{part}_proj.weight", (rows, d))
                for part, rows in (("q", q), ("k", kv), ("v", kv))
            ),
            f"{name}.o": (Source(f"{attention}.o_proj.weight", (d, q)),),
            f"{name}.gate": (Source(f"{mlp}.gate_proj.weight", (n, d)),),
            f"{name}.up": (Source(f"{mlp}.up_proj.weight", (n, d)),),
            f"{name}.down": (Source(f"{mlp}.down_proj.weight", (d, n)),),
        }
    return parts


ARCHITECTURE = Architecture("llama", "Llama", "LlamaForCausalLM", read_spec, sources)
