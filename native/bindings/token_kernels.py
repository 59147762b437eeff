"""Operators around the feed-forward layer, typed: norms, rotary, attention, sampling.

Re-exported by kernels.py, which says who calls them and what they raise.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import TOP
from hotcold.native.abi.names import NORMS
from hotcold.native.bindings._arrays import (
    F32,
    I32,
    array,
    attention_args,
    handle,
    same,
    vector,
    writable,
)
from hotcold.native.bindings._ffi import check, lib, new, pointer
from hotcold.native.bindings.pool import Pool
from hotcold.native.errors import ConfigError
from hotcold.native.options.sampling import Sampling, Top


def rmsnorm(x_BD: F32, weight_D: F32, eps: float) -> F32:
    """RMS norm of each token (at most 32): x / sqrt(mean(x^2) + eps) * weight."""
    return _norm("rms", x_BD, weight_D, None, eps)


def layernorm(x_BD: F32, weight_D: F32, bias_D: F32 | None, eps: float) -> F32:
    """Layer norm of each token (at most 32), with a bias unless it is None."""
    return _norm("layer", x_BD, weight_D, bias_D, eps)


def _norm(kind: str, x_BD: F32, weight_D: F32, bias_D: F32 | None, eps: float) -> F32:
    batch, d = array("x", x_BD, np.float32, 2).shape
    vector("weight", weight_D, np.float32, d)
    vector("bias", bias_D, np.float32, d)
    y_BD = np.empty_like(x_BD)
    x, weight, bias, y = (pointer(each, "float *") for each in (x_BD, weight_D, bias_D, y_BD))
    check(lib.hc_norm_rows(NORMS[kind], x, weight, bias, eps, y, batch, d))
    return y_BD


def rotary(x_BHE: F32, cos_PE: F32, sin_PE: F32, position_B: I32) -> None:
    """Turn heads [B, heads, head_dim] in place by their token's position (rotate-half).

    Tables are [positions, head_dim / 2].
    """
    writable("x", array("x", x_BHE, np.float32, 3))
    batch, heads, head_dim = x_BHE.shape
    for name, table in (("cos", cos_PE), ("sin", sin_PE)):
        same(f"a row of {name}", array(name, table, np.float32, 2).shape[1], head_dim // 2)
    vector("position", position_B, np.int32, batch)
    if batch and position_B.max() >= min(len(cos_PE), len(sin_PE)):
        raise ConfigError(f"position {position_B.max()} of tables for {len(cos_PE)} positions")
    x, cos, sin = (pointer(each, "float *") for each in (x_BHE, cos_PE, sin_PE))
    width, at = heads * head_dim, pointer(position_B, "int32_t *")
    check(lib.hc_rotary(x, width, heads, head_dim, cos, sin, at, batch))


def attention(
    q_BHE: F32,
    k_cache: F32,
    v_cache: F32,
    position_B: I32,
    *,
    slot_B: I32 | None = None,
    window: int = 0,
    pool: Pool | None = None,
) -> F32:
    """Grouped-query attention of each token to positions 0..its own; [B, heads, head_dim].

    Queries [B, heads, head_dim] have rotary applied; caches are [slots, kv_heads, context,
    head_dim]. slot_B: which sequence each token belongs to; None: slot 0. window: of the positions
    only the last so many; 0: all. pool None: the caller's thread alone.
    """
    batch, heads, head_dim = array("q", q_BHE, np.float32, 3).shape
    slots, _, context, _ = array("k_cache", k_cache, np.float32, 4).shape
    same("v_cache", array("v_cache", v_cache, np.float32, 4).size, k_cache.size)
    same("a head of the caches", k_cache.shape[3], head_dim)
    vector("position", position_B, np.int32, batch)
    vector("slot", slot_B, np.int32, batch)
    if slot_B is not None and batch and slot_B.max() >= slots:
        raise ConfigError(f"slot {slot_B.max()} of a cache of {slots}")
    scores = np.empty((1 if pool is None else pool.threads) * context, np.float32)
    out, more = np.empty_like(q_BHE), {"slot_B": slot_B, "scores": scores, "window": window}
    args = attention_args(q_BHE, k_cache, v_cache, heads, position_B, out, **more)
    check(lib.hc_attention(args, handle(pool)))
    return out


def drawing(sampling: Sampling) -> dict[str, float]:
    """What a draw depends on beside its position: fields of hc_request and of hc_sample_args."""
    same_names = {
        name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")
    }
    return {**same_names, "n_top": sampling.logprobs}


class Drawn(NamedTuple):
    """A token, the log softmax of the raw logits at it, and at the likeliest ids, best first."""

    id: int
    logprob: float
    top: Top


def pairs(top_K: NDArray[np.void]) -> Top:
    """Alternatives as (id, log probability), of TOP records."""
    return tuple((id_, logprob) for id_, logprob in top_K.tolist() if id_ >= 0)


def draw(logits_V: F32, sampling: Sampling, position: int = 0) -> Drawn:
    """Draw a token at a position of a sequence, with `sampling.logprobs` alternatives."""
    vocab = array("logits", logits_V, np.float32, 1).size
    scratch = {"scratch_V": np.empty(vocab, np.int32), "prob_V": np.empty(vocab, np.float32)}
    how = drawing(sampling) | {"position": position}
    top = np.zeros(sampling.logprobs, TOP)
    args = new("hc_sample_args", logits_V=logits_V, vocab=vocab, top=top, **how, **scratch)
    check(lib.hc_sample(args))
    return Drawn(args.id, args.logprob, pairs(top))


def sample(logits_V: F32, sampling: Sampling, position: int = 0) -> tuple[int, float]:
    """What `draw` draws, without alternatives."""
    return draw(logits_V, sampling, position)[:2]
