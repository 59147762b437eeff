"""Weight dtypes as raw numpy arrays, and exact conversions between them.

numpy has no bfloat16: such weights are kept as their bit patterns in uint16. Used by the checkpoint
readers, the bundle writer and the weight store.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError

Raw = NDArray[Any]
RAW_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
LARGEST: dict[str, float] = {"float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.39e38}
EXPONENT: dict[str, int] = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
PIECE = 1 << 18  # elements looked at together: they fit the cache


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


def check_finite(raw: Raw, dtype: str, source: str, first_row: int = 0) -> None:
    """Refuse rows of a tensor that hold a NaN or an infinity.

    One such weight turns every later token into nonsense without an error. The check of bit
    patterns takes a few per cent of the time of a conversion. `raw` is C-contiguous; its first row
    is row `first_row` of the tensor that `source` names.

    Raises:
        CheckpointError: tensor, index and value of the first one.
    """
    ones = EXPONENT[dtype]
    bits = np.ascontiguousarray(raw).reshape(-1).view(f"u{raw.dtype.itemsize}")
    for begin in range(0, bits.size, PIECE):
        exponents = bits[begin : begin + PIECE] & ones
        if exponents.max() != ones:
            continue
        at = begin + int(np.flatnonzero(exponents == ones)[0])
        value = float(to_float32(raw.reshape(-1)[at : at + 1], dtype)[0])
        index = [int(i) for i in np.unravel_index(at, raw.shape)]
        index[0] += first_row
        raise CheckpointError(
            f"tensor {source} holds {value} at {index}; a model with such weights computes "
            "nothing, download or train it again"
        )
