"""Weight dtypes as raw numpy arrays, and exact conversions between them.

numpy has no bfloat16: such weights are kept as their bit patterns in uint16. Used by the checkpoint
readers, the bundle writer and the weight store; computes nothing else.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[Any]
RAW_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
LARGEST: dict[str, float] = {"float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.39e38}


def to_float32(raw: Raw, dtype: str) -> NDArray[np.float32]:
    """Widen raw weights of the given dtype; exact."""
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)


def _to_bfloat16(values: NDArray[np.float32]) -> Raw:
    """Bit patterns of the nearest bfloat16, ties to even, as torch rounds."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def convert(raw: Raw, source: str, target: str) -> Raw:
    """Raw weights in another dtype, rounded to nearest even; the same array if nothing changes.

    Raises:
        OverflowError: a finite weight does not fit the target.
    """
    if source == target:
        return raw
    values = to_float32(raw, source)
    if target == "float32":
        return values
    with np.errstate(over="ignore"):
        result = _to_bfloat16(values) if target == "bfloat16" else values.astype(np.float16)
    lost = np.isfinite(values) & ~np.isfinite(to_float32(result, target))
    if lost.any():
        raise OverflowError(f"{float(values[lost][0]):g} is beyond {target}'s {LARGEST[target]:g}")
    return result
