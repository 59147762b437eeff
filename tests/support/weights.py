"""Random weight arrays of each dtype, their float64 values, and the CPU variants to try."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings import kernels

VARIANTS = kernels.cpu_variants()
DTYPES = ["float32", "float16", "bfloat16"]


@contextmanager
def forced(variant: str) -> Iterator[None]:
    """Run a block on one CPU variant."""
    kernels.force_cpu_variant(variant)
    try:
        yield
    finally:
        kernels.force_cpu_variant(None)


def random_weights(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Normal weights; bfloat16 as uint16."""
    values = rng.standard_normal(shape).astype(np.float32)
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def float64(weights: NDArray[Any]) -> NDArray[np.float64]:
    """Exact values of a weight array."""
    if weights.dtype == np.uint16:
        weights = (weights.astype(np.uint32) << 16).view(np.float32)
    return weights.astype(np.float64)


def close_dot(got: NDArray[Any], exact: NDArray[Any], magnitude: NDArray[Any]) -> None:
    """Compare float32 sums with exact ones; the rounding error grows with the terms' magnitude."""
    assert got.dtype == np.float32
    assert got.shape == exact.shape
    error = np.abs(got - exact)
    assert (error <= 2e-6 * magnitude + 1e-30).all(), (error / (magnitude + 1e-30)).max()
