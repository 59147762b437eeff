"""Rotary position tables (cosines and sines) of a model, scaling and partial rotation included.

Called once per executor; the kernels only look up the tables. Source: RoFormer (arXiv 2104.09864).
Of the kinds of scaling, each computed as transformers does:

    linear     all wavelengths stretched by factor
    llama3     those beyond the training context stretched, those well inside it kept, a linear ramp
               between (the Llama 3.1 release)
    yarn       the same with a ramp over pairs, and cosines and sines times an attention factor
               (arXiv 2309.00071)
    dynamic    beyond the training context the base grows with the length so far (NTK-aware)
    longrope   a factor for each pair, of a long list or of a short one, and an attention factor
               (arXiv 2402.13753)

Two of them depend on a length. What keys already in a cache were turned by cannot change, so:

    dynamic    position p turns as in a sequence of p + 1 tokens. transformers does so with a cache
               and one token at a time; of a prompt that is itself beyond the training context it
               turns all by the prompt's whole length, which we do not.
    longrope   a context (`--context`) up to the original length has the short factors, a longer one
               the long factors, for all positions. transformers goes by the running length: equal
               beyond the original length, and below it with a context that is no longer than that.

Partial rotation: where only the first rotary_dim = R of a head's E elements turn, a checkpoint
pairs (i, i + R/2) and leaves R..E-1 as they are. The kernels turn pairs (i, i + E/2) of whole
heads. So the conversion stores the rows of each query and key head in another order, `head_order`:

    | 0 .. R/2-1 | R .. R+(E-R)/2-1 | R/2 .. R-1 | R+(E-R)/2 .. E-1 |
      turned        kept               turned       kept

Turned elements are then E/2 apart, and pairs of kept ones have a frequency of 0: cosine 1, sine 0,
the same bits. Queries and keys only ever meet in q . k, a sum over a head's elements, which does
not change when both are in the same other order; values and o stay as they are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.model.spec import ModelSpec

Floats = NDArray[np.float64]
Scaling = dict[str, Any]
ORIGINAL = "original_max_position_embeddings"


def head_order(head_dim: int, rotary_dim: int) -> tuple[range, ...]:
    """Which elements of a checkpoint's head make up a stored one, in its order."""
    turned, kept = rotary_dim // 2, rotary_dim + (head_dim - rotary_dim) // 2
    return (
        range(turned),
        range(rotary_dim, kept),
        range(turned, rotary_dim),
        range(kept, head_dim),
    )


def inverse_frequencies(spec: ModelSpec, context: int = 1) -> NDArray[np.float64]:
    """Radians a position of every rotary pair, 0 of those that do not turn.

    Shape [head_dim / 2], of "dynamic" [context, head_dim / 2]. context: positions of the tables.
    """
    turned = spec.rotary_dim or spec.head_dim
    exponents = np.arange(0, turned, 2, dtype=np.float64) / turned
    scale = _SCALED[spec.rope_scaling["rope_type"]] if spec.rope_scaling else None
    frequencies = spec.rope_theta**-exponents
    if scale is not None:
        frequencies = scale(frequencies, spec.rope_scaling or {}, spec.rope_theta, context)
    still = [(0, 0)] * (frequencies.ndim - 1) + [(0, (spec.head_dim - turned) // 2)]
    return np.pad(frequencies, still)


def _linear(base_E: Floats, scaling: Scaling, theta: float, context: int) -> Floats:
    return base_E / float(scaling["factor"])


def _llama3(base_E: Floats, scaling: Scaling, theta: float, context: int) -> Floats:
    """Stretch long wavelengths by factor, keep short ones, ramp in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling[ORIGINAL] * base_E / (2 * np.pi)
    return _mixed(base_E, np.clip((turns - low) / (high - low), 0.0, 1.0), scaling["factor"])


def _yarn(base_E: Floats, scaling: Scaling, theta: float, context: int) -> Floats:
    """Keep pairs that turn more than beta_fast times in the original context, ramp to beta_slow."""
    dim = 2 * len(base_E)
    turns = np.array([scaling["beta_fast"], scaling["beta_slow"]], np.float64)
    ends = dim * np.log(scaling[ORIGINAL] / (turns * 2 * np.pi)) / (2 * np.log(theta))
    if scaling["truncate"]:
        ends = np.array([np.floor(ends[0]), np.ceil(ends[1])])
    low, high = max(ends[0], 0.0), min(ends[1], dim - 1.0)
    high += 0.001 * (low == high)  # as transformers avoids a ramp of no width
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    return _mixed(base_E, 1 - ramp, scaling["factor"])


def _mixed(base_E: Floats, keep_E: Floats, factor: float) -> Floats:
    """Kept frequencies and stretched ones, in these shares."""
    return base_E / factor * (1 - keep_E) + base_E * keep_E


def _dynamic(base_E: Floats, scaling: Scaling, theta: float, context: int) -> Floats:
    """[context, E]: of position p as in a sequence of p + 1."""
    dim, original, factor = 2 * len(base_E), scaling[ORIGINAL], scaling["factor"]
    length_P = np.maximum(np.arange(1, context + 1), original)
    growth_P = (factor * length_P / original - (factor - 1)) ** (dim / max(dim - 2, 1))
    turning_PE: Floats = base_E * growth_P[:, None] ** -(np.arange(0, dim, 2) / dim)
    return turning_PE


def _longrope(base_E: Floats, scaling: Scaling, theta: float, context: int) -> Floats:
    length = "long" if context > scaling[ORIGINAL] else "short"
    return base_E / np.array(scaling[f"{length}_factor"], np.float64)


_SCALED = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "dynamic": _dynamic,
    "longrope": _longrope,
}


def _yarn_attention(factor: float, original: float, rope: Scaling) -> float:
    """0.1 ln(factor) + 1; of a file with two multiples of the first term, their ratio."""
    scales = [rope.get("mscale"), rope.get("mscale_all_dim")]
    first, second = scales if all(isinstance(s, int | float) and s for s in scales) else (1.0, 0.0)
    growth = 0.1 * np.log(max(factor, 1.0))
    return float((growth * first + 1) / (growth * second + 1))


def _longrope_attention(factor: float, original: float, rope: Scaling) -> float:
    return float(np.sqrt(1 + np.log(max(factor, 1.0)) / np.log(max(original, 2.0))))


# Attention factors where a file has none, of (factor, original length, the file's entry).
ATTENTION_FACTORS = {"yarn": _yarn_attention, "longrope": _longrope_attention}


def rotary_tables(spec: ModelSpec, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [context, head_dim / 2]; angles are taken in float64.

    An attention factor multiplies them where a pair turns.
    """
    angles = np.arange(context, dtype=np.float64)[:, None] * inverse_frequencies(spec, context)
    cos, sin = np.cos(angles), np.sin(angles)
    turned = (spec.rotary_dim or spec.head_dim) // 2
    factor = (spec.rope_scaling or {}).get("attention_factor", 1.0)
    cos[:, :turned] *= factor
    sin[:, :turned] *= factor
    return cos.astype(np.float32), sin.astype(np.float32)
