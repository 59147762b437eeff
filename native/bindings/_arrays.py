"""What the typed kernel wrappers ask of an array before its address goes to C.

Used by kernels.py and token_kernels.py only; every function raises ConfigError.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import CACHE_LINE, Dtype
from hotcold.native.bindings._ffi import ffi, lib
from hotcold.native.bindings.pool import CPointer, Pool
from hotcold.native.errors import ConfigError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
Weights = NDArray[Any]

_CODES = {
    np.dtype(np.float32): Dtype.F32,
    np.dtype(np.float16): Dtype.F16,
    np.dtype(np.uint16): Dtype.BF16,
}


def handle(pool: Pool | None) -> CPointer:
    """The C pool of a Pool; NULL for None."""
    return ffi.NULL if pool is None else pool.handle


def array(name: str, value: NDArray[Any], dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """Value, if it has that dtype and rank and is C-contiguous."""
    if value.dtype != dtype or value.ndim != ndim or not value.flags.c_contiguous:
        raise ConfigError(
            f"{name} is {value.dtype} of shape {value.shape}, a C-contiguous {np.dtype(dtype)} "
            f"array of {ndim} axes is needed"
        )
    return value


def same(name: str, value: int, needed: int) -> None:
    """Refuse a number of entries that is not the needed one."""
    if value != needed:
        raise ConfigError(f"{name} has {value} entries, {needed} are needed")


def code(dtype: np.dtype[Any]) -> int:
    """The hc_dtype of a weight array's dtype."""
    if dtype not in _CODES:
        raise ConfigError(f"weights are {dtype}; float32, float16 or uint16 (bfloat16) are needed")
    return _CODES[dtype]


def ffn_scratch(n_ids: int, batch: int) -> NDArray[np.uint8]:
    """Scratch of hc_ffn for a list of n_ids, on a cache line."""
    room = np.empty(lib.hc_ffn_scratch_bytes(n_ids, batch) + CACHE_LINE, np.uint8)
    return room[-room.ctypes.data % CACHE_LINE :]


def writable(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """Value, if it may be written to."""
    if not value.flags.writeable:
        raise ConfigError(f"{name} is read-only; pass a writable copy")
    return value
