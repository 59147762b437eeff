"""Rotary position tables (cosines and sines) of a model, scaling included.

Called once per executor; the kernels only look up the tables. Source: RoFormer (arXiv 2104.09864),
and for the "llama3" scaling the Llama 3.1 release (wavelengths beyond the training context are
stretched, those well inside it kept, a linear ramp between).
"""

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.spec import ModelSpec


def inverse_frequencies(spec: ModelSpec) -> NDArray[np.float64]:
    """Radians a position of every rotary pair, shape [head_dim / 2].

    Raises:
        CheckpointError: a scaling kind that is not known.
    """
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float64) / spec.head_dim
    frequencies: NDArray[np.float64] = spec.rope_theta**-exponents
    scaling = spec.rope_scaling
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
