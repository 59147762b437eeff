"""Operators around the feed-forward layer, typed: norms, rotary, attention, sampling.

Re-exported by kernels.py, which says who calls them and what they raise.
"""

from typing import Any

import numpy as np

from hotcold.native.bindings._arrays import F32, I32, array, handle, same, writable
from hotcold.native.bindings._ffi import check, ffi, lib, pointer
from hotcold.native.bindings.pool import Pool
from hotcold.native.errors import ConfigError
from hotcold.native.options.sampling import Sampling


def rmsnorm(x_BD: F32, weight_D: F32, eps: float) -> F32:
    """RMS norm of each token (at most 32): x / sqrt(mean(x^2) + eps) * weight."""
    batch, d = array("x", x_BD, np.float32, 2).shape
    same("weight", array("weight", weight_D, np.float32, 1).size, d)
    y_BD = np.empty_like(x_BD)
    x, weight = pointer(x_BD, "float *"), pointer(weight_D, "float *")
    check(lib.hc_rmsnorm(x, weight, eps, pointer(y_BD, "float *"), batch, d))
    return y_BD


def layernorm(x_BD: F32, weight_D: F32, bias_D: F32 | None, eps: float) -> F32:
    """Layer norm of each token (at most 32), with a bias unless it is None."""
    batch, d = array("x", x_BD, np.float32, 2).shape
    same("weight", array("weight", weight_D, np.float32, 1).size, d)
    if bias_D is not None:
        same("bias", array("bias", bias_D, np.float32, 1).size, d)
    y_BD = np.empty_like(x_BD)
    x, weight = pointer(x_BD, "float *"), pointer(weight_D, "float *")
    bias, y = pointer(bias_D, "float *"), pointer(y_BD, "float *")
    check(lib.hc_layernorm(x, weight, bias, eps, y, batch, d))
    return y_BD


def rotary(x_BHE: F32, cos_PE: F32, sin_PE: F32, position_B: I32) -> None:
    """Turn heads in place by their token's position (rotate-half).

    Args:
        x_BHE: [B, heads, head_dim], changed in place.
        cos_PE: [positions, head_dim / 2]; sin_PE likewise.
        sin_PE: see cos_PE.
        position_B: position of each token.
    """
    writable("x", array("x", x_BHE, np.float32, 3))
    batch, heads, head_dim = x_BHE.shape
    for name, table in (("cos", cos_PE), ("sin", sin_PE)):
        same(f"a row of {name}", array(name, table, np.float32, 2).shape[1], head_dim // 2)
    same("position", array("position", position_B, np.int32, 1).size, batch)
    if batch and position_B.max() >= min(len(cos_PE), len(sin_PE)):
        raise ConfigError(f"position {position_B.max()} of tables for {len(cos_PE)} positions")
    check(
        lib.hc_rotary(
            pointer(x_BHE, "float *"),
            heads * head_dim,
            heads,
            head_dim,
            pointer(cos_PE, "float *"),
            pointer(sin_PE, "float *"),
            pointer(position_B, "int32_t *"),
            batch,
        )
    )


def attention(
    q_BHE: F32,
    k_cache: F32,
    v_cache: F32,
    position_B: I32,
    *,
    slot_B: I32 | None = None,
    pool: Pool | None = None,
) -> F32:
    """Grouped-query attention of each token to positions 0..its own; [B, heads, head_dim].

    Args:
        q_BHE: [B, heads, head_dim] queries, rotary applied.
        k_cache: [slots, kv_heads, context, head_dim]; v_cache likewise.
        v_cache: see k_cache.
        position_B: last position each token attends to.
        slot_B: which sequence each token belongs to; None: slot 0.
        pool: threads; None: the caller's alone.
    """
    batch, heads, head_dim = array("q", q_BHE, np.float32, 3).shape
    slots, kv_heads, context, _ = array("k_cache", k_cache, np.float32, 4).shape
    same("v_cache", array("v_cache", v_cache, np.float32, 4).size, k_cache.size)
    same("a head of the caches", k_cache.shape[3], head_dim)
    same("position", array("position", position_B, np.int32, 1).size, batch)
    if slot_B is not None:
        same("slot", array("slot", slot_B, np.int32, 1).size, batch)
        if batch and slot_B.max() >= slots:
            raise ConfigError(f"slot {slot_B.max()} of a cache of {slots}")
    threads = 1 if pool is None else pool.threads
    scores = np.empty(threads * context, np.float32)
    out = np.empty_like(q_BHE)
    args = ffi.new("hc_attention_args *")
    args.q, args.q_stride = pointer(q_BHE, "float *"), heads * head_dim
    args.k_cache, args.v_cache = pointer(k_cache, "float *"), pointer(v_cache, "float *")
    args.heads, args.kv_heads, args.head_dim, args.batch = heads, kv_heads, head_dim, batch
    args.context = context
    args.slot_B = pointer(slot_B, "int32_t *")
    args.position_B = pointer(position_B, "int32_t *")
    args.scores, args.out = pointer(scores, "float *"), pointer(out, "float *")
    check(lib.hc_attention(args, handle(pool)))
    return out


def set_sampling(c: Any, sampling: Sampling) -> None:
    """Write what a draw depends on, beside its position, into the fields of a C struct.

    The one place that knows their names: of hc_request and of hc_sample_args.
    """
    c.temperature, c.top_p = sampling.temperature, sampling.top_p
    c.top_k, c.seed = sampling.top_k, sampling.seed


def sample(logits_V: F32, sampling: Sampling, position: int = 0) -> tuple[int, float]:
    """Draw a token id; returns it with the log softmax of the raw logits at it.

    Args:
        logits_V: logits of the vocabulary.
        sampling: how.
        position: of the token in its sequence.
    """
    vocab = array("logits", logits_V, np.float32, 1).size
    ids, probabilities = np.empty(vocab, np.int32), np.empty(vocab, np.float32)
    args = ffi.new("hc_sample_args *")
    args.logits_V, args.vocab = pointer(logits_V, "float *"), vocab
    set_sampling(args, sampling)
    args.position = position
    args.scratch_V = pointer(ids, "int32_t *")
    args.prob_V = pointer(probabilities, "float *")
    check(lib.hc_sample(args))
    return args.id, args.logprob
