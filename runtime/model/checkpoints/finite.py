"""NaN and Inf among the weights of a checkpoint: refused while it is converted, with their place.

One such weight turns every later token into nonsense without an error. The check looks at bit
patterns in pieces that fit the cache and takes a few per cent of the time of a conversion.
"""

import numpy as np

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.checkpoints.dtypes import Raw, to_float32

EXPONENT: dict[str, int] = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
PIECE = 1 << 18  # elements


def check_finite(raw: Raw, dtype: str, source: str, first_row: int = 0) -> None:
    """Refuse rows of a tensor that hold a NaN or an infinity.

    `raw` is C-contiguous; its first row is row `first_row` of the tensor that `source` names.

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
