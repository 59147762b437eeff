"""Falcon: attention and feed-forward part side by side, layer norms, one matrix for q, k and v.

7B has one norm for both parts and one key head; 40B a norm for each, and its rows by key head;
Falcon2-11B 40B's rows under one norm. Of each key head the matrix holds the query heads that share
it, then the key, then the value. The defaults are those transformers gives a Falcon.
"""

from hotcold.runtime.model.architectures.base import Architecture, Source, Sources
from hotcold.runtime.model.architectures.hf_config import Config, eos_ids
from hotcold.runtime.model.architectures.llama_like import (
    norm_sources,
    read_heads,
    read_kv_heads,
    read_rope,
)
from hotcold.runtime.model.block import Block, attend, ffn, norm, norms
from hotcold.runtime.model.spec import DType, ModelSpec

ONE_NORM: Block = (norm("attention_norm", "h", "x"), attend("x"), ffn("x"))
TWO_NORMS: Block = (
    norm("ffn_norm", "h", "x"),
    norm("attention_norm", "h", "a"),
    attend("a"),
    ffn("x"),
)


def read_spec(config: Config, dtype: DType) -> ModelSpec:
    """The spec of a checkpoint, refusing what is not a parallel Falcon with ReLU."""
    config.require_relu("activation", "gelu")
    config.refuse_unsupported()
    if config.flag("alibi"):
        raise config.refuse("alibi is true; only rotary positions are supported")
    if not config.flag("parallel_attn", True):
        raise config.refuse("parallel_attn is false; a Falcon in sequence is not supported")
    new = config.flag("new_decoder_architecture")
    possible = (2, 1) if new else (1,)
    n_norms = config.data.get("num_ln_in_parallel_attn")
    n_norms = possible[0] if n_norms is None else n_norms
    if n_norms not in possible:
        raise config.refuse(
            f"num_ln_in_parallel_attn is {n_norms!r:.80}, with new_decoder_architecture "
            f"{str(new).lower()} it must be {' or '.join(map(str, possible))}; correct it"
        )
    sizes = read_heads(config)
    n_kv_heads = 1 if config.flag("multi_query", True) else sizes["n_heads"]
    if new:  # elsewhere num_kv_heads may be there and says nothing
        n_kv_heads = read_kv_heads(config, "num_kv_heads", sizes["n_heads"])
    vocab_size = config.integer("vocab_size", "vocab_size")
    spec = ModelSpec(
        architecture="falcon",
        n_layers=config.integer("num_hidden_layers", "n_layers"),
        n_neurons=config.integer("ffn_hidden_size", "n_neurons", 4 * sizes["d_model"]),
        **sizes,
        n_kv_heads=n_kv_heads,
        vocab_size=vocab_size,
        norm_eps=config.number("layer_norm_epsilon", 1e-5, 1.0),
        **read_rope(config, 2048, sizes["head_dim"]),
        tied=config.flag("tie_word_embeddings", True),
        dtype=dtype,
        bos_ids=config.token_ids("bos_token_id", vocab_size),
        eos_ids=eos_ids(config, vocab_size),
        norm="layer",
        gated=False,
        biases=config.flag("bias"),
        block=TWO_NORMS if n_norms == 2 else ONE_NORM,
    )
    return config.checked(spec)


def _qkv_rows(spec: ModelSpec) -> tuple[range, ...]:
    """All queries, all keys, all values, from where they lie by key head."""
    size, share = spec.head_dim, spec.n_heads // spec.n_kv_heads
    starts = range(0, (spec.n_heads + 2 * spec.n_kv_heads) * size, (share + 2) * size)
    parts = ((0, share), (share, share + 1), (share + 1, share + 2))
    return tuple(
        range(start + begin * size, start + end * size) for begin, end in parts for start in starts
    )


def sources(spec: ModelSpec, config: Config) -> Sources:
    """Checkpoint tensors behind each tensor of a bundle."""
    d, n = spec.d_model, spec.n_neurons
    qkv, rows = spec.q_dim + 2 * spec.kv_dim, _qkv_rows(spec)
    parts: Sources = {
        "embed": (Source("transformer.word_embeddings.weight", (spec.vocab_size, d)),),
        "head": (Source("lm_head.weight", (spec.vocab_size, d)),),
        **norm_sources("final_norm", "transformer.ln_f", spec),
    }
    named = {"attention_norm": "ln_attn", "ffn_norm": "ln_mlp"}
    if len(norms(spec.block)) == 1:
        named = {"attention_norm": "input_layernorm"}
    for i in range(spec.n_layers):
        source, name = f"transformer.h.{i}", f"layers.{i}"
        attention, mlp = f"{source}.self_attention", f"{source}.mlp"
        for ours, theirs in named.items():
            parts |= norm_sources(f"{name}.{ours}", f"{source}.{theirs}", spec)
        parts |= {
            f"{name}.qkv": (Source(f"{attention}.query_key_value.weight", (qkv, d), rows),),
            f"{name}.o": (Source(f"{attention}.dense.weight", (d, spec.q_dim)),),
            f"{name}.gate": (Source(f"{mlp}.dense_h_to_4h.weight", (n, d)),),
            f"{name}.down": (Source(f"{mlp}.dense_4h_to_h.weight", (d, n)),),
        }
        if spec.biases:
            parts |= {
                f"{name}.qkv_bias": (Source(f"{attention}.query_key_value.bias", (qkv,), rows),),
                f"{name}.o_bias": (Source(f"{attention}.dense.bias", (d,)),),
                f"{name}.bias": (Source(f"{mlp}.dense_h_to_4h.bias", (n,)),),
                f"{name}.ffn_bias": (Source(f"{mlp}.dense_4h_to_h.bias", (d,)),),
            }
    return parts


ARCHITECTURE = Architecture(
    "falcon", "Falcon", "FalconForCausalLM", read_spec, sources, prefix="transformer."
)
