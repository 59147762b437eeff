"""OPT: layer norms, learned positions, plain ReLU neurons, biases everywhere.

All sizes lead their blocks with the norms and have one before the head, except opt-350m, whose
norms follow the residual additions and whose embeddings are narrower than the residual stream. The
defaults are those transformers gives an OPT.
"""

from hotcold.runtime.model.architectures.base import Architecture, Fill, Source, Sources
from hotcold.runtime.model.architectures.hf_config import Config, eos_ids
from hotcold.runtime.model.spec import DType, ModelSpec

POSITION_OFFSET = 2  # the table's first rows belong to no position, left from fairseq's padding
NORM_EPS = 1e-5  # not in config.json: torch's default


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not an OPT with ReLU."""
    config.require_relu("activation_function", "relu")
    config.refuse_unsupported()
    d_model = config.integer("hidden_size", "d_model")
    n_heads = config.integer("num_attention_heads", "n_heads")
    if d_model % n_heads:
        raise config.refuse(
            f"hidden_size {d_model} is not a multiple of num_attention_heads {n_heads}; "
            "correct one of them"
        )
    vocab_size = config.integer("vocab_size", "vocab_size")
    embed_dim = config.integer("word_embed_proj_dim", "d_model", d_model)
    pre_norm = config.flag("do_layer_norm_before", True)
    spec = ModelSpec(
        architecture="opt",
        n_layers=config.integer("num_hidden_layers", "n_layers"),
        d_model=d_model,
        n_neurons=config.integer("ffn_dim", "n_neurons"),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=d_model // n_heads,
        vocab_size=vocab_size,
        max_context=config.integer("max_position_embeddings", "max_context", 2048),
        norm_eps=NORM_EPS,
        rope_theta=0.0,
        tied=config.flag("tie_word_embeddings", True),
        dtype=dtype,
        bos_ids=config.token_ids("bos_token_id", vocab_size),
        eos_ids=eos_ids(config, vocab_size),
        norm="layer",
        gated=False,
        positions="learned",
        biases=config.flag("enable_bias", True),
        post_norm=not pre_norm,
        final_norm=pre_norm and not config.flag("_remove_final_layer_norm"),
        embed_dim=None if embed_dim == d_model else embed_dim,
    )
    return config.checked(spec)


def sources(spec: ModelSpec, config: Config) -> Sources:
    """Checkpoint tensors behind each tensor of a bundle."""
    d, decoder = spec.d_model, "model.decoder"
    width = spec.embed_width
    positions = Source(
        f"{decoder}.embed_positions.weight",
        (spec.max_context + POSITION_OFFSET, d),
        skip=POSITION_OFFSET,
    )
    parts: Sources = {
        "embed": (Source(f"{decoder}.embed_tokens.weight", (spec.vocab_size, width)),),
        "head": (Source("lm_head.weight", (spec.vocab_size, width)),),
        "positions": (positions,),
    }
    if spec.embed_dim is not None:
        parts["project_in"] = (Source(f"{decoder}.project_in.weight", (d, width)),)
        parts["project_out"] = (Source(f"{decoder}.project_out.weight", (width, d)),)
    affine = config.flag("layer_norm_elementwise_affine", True)
    if spec.final_norm:
        parts |= _norm("final_norm", f"{decoder}.final_layer_norm", d, affine)
    for i in range(spec.n_layers):
        source = f"{decoder}.layers.{i}"
        parts |= _layer(f"layers.{i}", source, spec)
        parts |= _norm(f"layers.{i}.attention_norm", f"{source}.self_attn_layer_norm", d, affine)
        parts |= _norm(f"layers.{i}.ffn_norm", f"{source}.final_layer_norm", d, affine)
    return parts


def _norm(name: str, source: str, d: int, affine: bool) -> Sources:
    """A layer norm; one without parameters has weights of 1 and biases of 0."""
    if not affine:
        return {name: Fill(1.0, d), f"{name}_bias": Fill(0.0, d)}
    return {
        name: (Source(f"{source}.weight", (d,)),),
        f"{name}_bias": (Source(f"{source}.bias", (d,)),),
    }


def _layer(name: str, source: str, spec: ModelSpec) -> Sources:
    d, n, qkv = spec.d_model, spec.n_neurons, [f"{source}.self_attn.{part}_proj" for part in "qkv"]
    parts: Sources = {
        f"{name}.qkv": tuple(Source(f"{part}.weight", (d, d)) for part in qkv),
        f"{name}.o": (Source(f"{source}.self_attn.out_proj.weight", (d, d)),),
        f"{name}.gate": (Source(f"{source}.fc1.weight", (n, d)),),
        f"{name}.down": (Source(f"{source}.fc2.weight", (d, n)),),
    }
    if spec.biases:
        parts |= {
            f"{name}.qkv_bias": tuple(Source(f"{part}.bias", (d,)) for part in qkv),
            f"{name}.o_bias": (Source(f"{source}.self_attn.out_proj.bias", (d,)),),
            f"{name}.bias": (Source(f"{source}.fc1.bias", (n,)),),
            f"{name}.ffn_bias": (Source(f"{source}.fc2.bias", (d,)),),
        }
    return parts


ARCHITECTURE = Architecture("opt", "OPT", "OPTForCausalLM", read_spec, sources)
