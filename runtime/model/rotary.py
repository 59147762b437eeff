"""Rotary position tables (cosines and sines) of a model, scaling and partial rotation included.

Called once per executor; the kernels only look up the tables. Source: RoFormer (arXiv 2104.09864),
and for the "llama3" scaling the Llama 3.1 release (wavelengths beyond the training context are
stretched, those well inside it kept, a linear ramp between).

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

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.spec import ModelSpec


def head_order(head_dim: int, rotary_dim: int) -> tuple[range, ...]:
    """Which elements of a checkpoint's head make up a stored one, in its order."""
    turned, kept = rotary_dim // 2, rotary_dim + (head_dim - rotary_dim) // 2
    return (
        range(turned),
        range(rotary_dim, kept),
        range(turned, rotary_dim),
        range(kept, head_dim),
    )


def inverse_frequencies(spec: ModelSpec) -> NDArray[np.float64]:
    """Radians a position of every rotary pair, shape [head_dim / 2]; 0 of those that do not turn.

    Raises:
        CheckpointError: a scaling kind that is not known.
    """
    turned = spec.rotary_dim or spec.head_dim
    exponents = np.arange(0, turned, 2, dtype=np.float64) / turned
    frequencies = _scaled(spec.rope_theta**-exponents, spec.rope_scaling)
    return np.pad(frequencies, (0, (spec.head_dim - turned) // 2))


def _scaled(
    frequencies: NDArray[np.float64], scaling: dict[str, Any] | None
) -> NDArray[np.float64]:
    if not scaling:
        return frequencies
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return frequencies
    if kind == "linear":
        return frequencies / float(scaling["factor"])
    if kind == "llama3":
        return _llama3(frequencies, scaling)
    raise CheckpointError(
        f"rope scaling {kind!r} is not supported; supported: default, linear, llama3"
    )


def _llama3(frequencies: NDArray[np.float64], scaling: dict[str, float]) -> NDArray[np.float64]:
    """Stretch long wavelengths by factor, keep short ones, ramp in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    stretched: NDArray[np.float64] = frequencies / scaling["factor"] * (1 - keep)
    return stretched + frequencies * keep


def rotary_tables(spec: ModelSpec, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [context, head_dim / 2]; angles are taken in float64."""
    angles = np.outer(np.arange(context, dtype=np.float64), inverse_frequencies(spec))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
