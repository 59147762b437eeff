"""What configurations and tensors of Llama's kin have in common: rotary positions, heads, names.

Knows old and new spellings of keys (`rope_theta` beside `rope_scaling`, or both inside
`rope_parameters`). What a kind does otherwise is its own file's.
"""

from typing import Any

from hotcold.runtime.model.architectures.base import Source, Sources
from hotcold.runtime.model.architectures.hf_config import Config, eos_ids
from hotcold.runtime.model.architectures.limits import (
    LIMITS,
    ROPE_LISTS,
    ROPE_NUMBERS,
    check_rope_scaling,
    positive,
)
from hotcold.runtime.model.rotary import ATTENTION_FACTORS, ORIGINAL, head_order
from hotcold.runtime.model.spec import DType, ModelSpec

ROPE_KEYS = ("rope_scaling", "rope_parameters")
PARTIAL_KEYS = ("rope_percent", "partial_rotary_factor")  # the later one holds where they differ


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


def read_rope(
    config: Config, context: int, head_dim: int, share: float | None = None
) -> dict[str, Any]:
    """Positions as fields of a spec: theta, scaling, how much of a head turns, how many there are.

    Theta and scaling are read from either spelling; in both, they must agree. `context` positions
    and `share` of a head (None: all of it, and nothing else is possible) hold where the file says
    nothing. A scaling that reaches beyond max_position_embeddings gives more positions.
    """
    rotary_dim = _rotary_dim(config, head_dim, share)
    positions = config.integer("max_position_embeddings", "max_context", context)
    said = [config.data[key] for key in ROPE_KEYS if config.data.get(key)]
    turned = rotary_dim or head_dim
    read = [_rope_entry(config, entry, positions, turned) for entry in said or [{}]]
    if read[0] != read[-1]:
        raise config.refuse(
            f"{' and '.join(ROPE_KEYS)} differ ({said[0]!r:.120} and {said[1]!r:.120}); keep the "
            "one that is meant"
        )
    scaling = read[0].get("rope_scaling", {})
    reach = scaling.get(ORIGINAL, 0) * scaling.get("factor", 1)
    reach = min(int(reach), LIMITS["max_context"][1])
    return {**read[0], "rotary_dim": rotary_dim, "max_context": max(positions, reach)}


def _rope_entry(config: Config, rope: object, positions: int, turned: int) -> dict[str, Any]:
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
    kind = _rope_kind(config, rope)
    if kind == "default":
        return {"rope_theta": float(theta)}
    scaling = {"rope_type": kind, **_scaling(config, str(kind), rope, positions)}
    try:
        check_rope_scaling(scaling, turned)
    except ValueError as error:
        raise config.refuse(f"{error}; use a checkpoint that has one of these") from error
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _scaling(config: Config, kind: str, rope: dict[str, Any], positions: int) -> dict[str, Any]:
    """The numbers of a scaling, with what transformers takes where the file says nothing."""
    names = (*ROPE_NUMBERS.get(kind, ()), *ROPE_LISTS.get(kind, ()))
    scaling = {name: rope.get(name) for name in names}
    if ORIGINAL in scaling:
        said = (config.data.get(ORIGINAL), rope.get(ORIGINAL))
        known = () if kind == "dynamic" else [value for value in said if value is not None]
        scaling[ORIGINAL] = original = known[0] if known else positions
        if not positive(original, 1e9):
            return scaling  # which is refused
    for key in ("mscale", "mscale_all_dim"):
        if rope.get(key) and not positive(rope[key], 1e9):
            raise config.refuse(
                f"rope parameter {key} is {rope[key]!r:.80}, it must be a number above 0 and at "
                "most 1e9; correct it"
            )
    if kind in ATTENTION_FACTORS:
        factor = rope.get("factor")
        factor = positions / original if factor is None else factor
        if "factor" in scaling:
            scaling["factor"] = factor
        if scaling["attention_factor"] is None and positive(factor, 1e9):
            scaling["attention_factor"] = ATTENTION_FACTORS[kind](factor, original, rope)
    if kind == "yarn":
        scaling["beta_fast"] = rope.get("beta_fast") or 32
        scaling["beta_slow"] = rope.get("beta_slow") or 1
        scaling["truncate"] = rope.get("truncate", True)
    return scaling


def read_heads(config: Config, size: int | None = None) -> dict[str, Any]:
    """Width and query heads, as fields of a spec; size: of a head, where the file does not say.

    None: as heads share the width evenly.
    """
    d_model = config.integer("hidden_size", "d_model")
    n_heads = config.integer("num_attention_heads", "n_heads")
    if size is None and config.data.get("head_dim") is None and d_model % n_heads:
        raise config.refuse(
            f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads} and "
            "head_dim is not given; correct one of them"
        )
    head_dim = config.integer("head_dim", "head_dim", size or d_model // n_heads)
    if head_dim % 2:
        raise config.refuse(f"head_dim {head_dim} is odd; rotary embedding turns pairs, correct it")
    return {"d_model": d_model, "n_heads": n_heads, "head_dim": head_dim}


def read_kv_heads(config: Config, key: str, n_heads: int, default: int | None = None) -> int:
    """Key and value heads; default: where the key is absent, None: as many as query heads."""
    n_kv_heads = config.integer(key, "n_kv_heads", default or n_heads)
    if n_heads % n_kv_heads:
        raise config.refuse(
            f"num_attention_heads {n_heads} is not a multiple of {key} {n_kv_heads}; "
            "correct one of them"
        )
    return n_kv_heads


def _rotary_dim(config: Config, head_dim: int, share: float | None) -> int | None:
    """See ModelSpec; share: of a head, where the file does not say; None: only whole ones turn."""
    ropes = [config.data.get(key) for key in ROPE_KEYS]
    files = [config.data, *(rope for rope in ropes if isinstance(rope, dict))]
    said = {key: file[key] for file in files for key in PARTIAL_KEYS if file.get(key) is not None}
    for key, value in said.items():
        if share is None and value != 1:
            raise config.refuse(
                f"{key} {value!r:.80} is not supported; this model turns whole heads"
            )
        if not positive(value, 1.0) or int(head_dim * value) % 2 or head_dim * value < 2:
            raise config.refuse(
                f"{key} is {value!r:.80}, it must be above 0, at most 1, and leave an even number "
                f"of a head's {head_dim} elements; correct it"
            )
        share = value
    turned = head_dim if share is None else int(head_dim * share)
    return None if turned == head_dim else turned


def read_llama_like(
    config: Config,
    dtype: DType,
    architecture: str,
    *,
    context: int = 2048,
    kv_heads: int | None = None,
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    turned: float | None = None,
    head_dim: int | None = None,
    tied: bool = False,
    **kinds: Any,  # noqa: ANN401 - as ModelSpec has them
) -> ModelSpec:
    """The spec of a checkpoint that spells its sizes as a Llama does.

    `context`, `kv_heads` (None: as many as heads), `eps` (with its key), `turned` (the share of
    a head that does; None: all of it, and nothing else is possible), `head_dim` (None: as heads
    share the width) and `tied` hold where the file says nothing. `attention_bias` in the file means
    biases of q, k, v and o, unless `kinds` say which there are.

    Raises:
        CheckpointError: the file cannot be right, or says what is not supported.
    """
    config.refuse_unsupported()
    if config.flag("mlp_bias"):
        raise config.refuse(
            "mlp_bias is true; biases of these neurons are not supported, use a model without"
        )
    kinds.setdefault("attention_biases", "qkv o" if config.flag("attention_bias") else "")
    vocab_size = config.integer("vocab_size", "vocab_size")
    sizes = read_heads(config, head_dim)
    spec = ModelSpec(
        architecture=architecture,
        n_layers=config.integer("num_hidden_layers", "n_layers"),
        n_neurons=config.integer("intermediate_size", "n_neurons"),
        **sizes,
        n_kv_heads=read_kv_heads(config, "num_key_value_heads", sizes["n_heads"], kv_heads),
        vocab_size=vocab_size,
        norm_eps=config.number(*eps, 1.0),
        **read_rope(config, context, sizes["head_dim"], turned),
        tied=config.flag("tie_word_embeddings", tied),
        dtype=dtype,
        bos_ids=config.token_ids("bos_token_id", vocab_size),
        eos_ids=eos_ids(config, vocab_size),
        **kinds,
    )
    return config.checked(spec)


def norm_sources(
    name: str,
    source: str,
    spec: ModelSpec,
    plus: float = 0.0,
    rows: tuple[range, ...] | None = None,
) -> Sources:
    """A norm's weight, to which the model adds `plus`, and the bias of a layer norm.

    rows: of a head, in the bundle's order; None: a norm of the width.
    """
    shape = (spec.head_dim if rows else spec.d_model,)
    parts: Sources = {name: (Source(f"{source}.weight", shape, rows, plus),)}
    if spec.norm == "layer":
        parts[f"{name}_bias"] = (Source(f"{source}.bias", shape, rows),)
    return parts


def head_rows(spec: ModelSpec) -> tuple[range, ...]:
    """Rows of a query or key head in the order of rotary.py."""
    if spec.rotary_dim is None:
        return (range(spec.head_dim),)
    return head_order(spec.head_dim, spec.rotary_dim)


def head_norm_sources(name: str, source: str, spec: ModelSpec) -> Sources:
    """Norms of query and key heads; source: with {} for q and k."""
    parts: Sources = {}
    for head in "qk":
        parts |= norm_sources(
            f"{name}.{head}_norm", source.format(head), spec, rows=head_rows(spec)
        )
    return parts


def _heads(spec: ModelSpec, source: str, heads: int, columns: tuple[int, ...]) -> Source:
    """A projection to query or key heads, or its bias."""
    size = spec.head_dim
    rows = tuple(
        range(head * size + part.start, head * size + part.stop)
        for head in range(heads)
        for part in head_rows(spec)
    )
    return Source(source, (heads * size, *columns), rows if spec.rotary_dim else None)


def sources(spec: ModelSpec, config: Config, norm_plus: float = 0.0) -> Sources:
    """Checkpoint tensors behind each tensor of a bundle; of ungated neurons `up_proj` decides."""
    d, n, q, kv = spec.d_model, spec.n_neurons, spec.q_dim, spec.kv_dim
    parts: Sources = {
        "embed": (Source("model.embed_tokens.weight", (spec.vocab_size, d)),),
        "head": (Source("lm_head.weight", (spec.vocab_size, d)),),
        **norm_sources("final_norm", "model.norm", spec, norm_plus),
    }
    for i in range(spec.n_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        attention, mlp = f"{source}.self_attn", f"{source}.mlp"
        parts |= norm_sources(
            f"{name}.attention_norm", f"{source}.input_layernorm", spec, norm_plus
        )
        parts |= norm_sources(
            f"{name}.ffn_norm", f"{source}.post_attention_layernorm", spec, norm_plus
        )
        for ending, columns in {"weight": (d,), "bias": ()}.items():
            if ending == "weight" or "qkv" in spec.biased:
                parts[f"{name}.qkv" + "_bias" * (ending == "bias")] = (
                    _heads(spec, f"{attention}.q_proj.{ending}", spec.n_heads, columns),
                    _heads(spec, f"{attention}.k_proj.{ending}", spec.n_kv_heads, columns),
                    Source(f"{attention}.v_proj.{ending}", (kv, *columns)),
                )
        if "o" in spec.biased:
            parts[f"{name}.o_bias"] = (Source(f"{attention}.o_proj.bias", (d,)),)
        if spec.qk_norm:
            parts |= head_norm_sources(name, f"{attention}.{{}}_norm", spec)
        parts |= {
            f"{name}.o": (Source(f"{attention}.o_proj.weight", (d, q)),),
            f"{name}.down": (Source(f"{mlp}.down_proj.weight", (d, n)),),
        }
        rows = ("gate", "up") if spec.gated else ("up",)
        for part, proj in zip(("gate", "up"), rows, strict=False):
            parts[f"{name}.{part}"] = (Source(f"{mlp}.{proj}_proj.weight", (n, d)),)
    return parts
