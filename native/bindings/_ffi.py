"""Load the compiled kernels, compare the ABI, and turn a status into an exception.

The folder `native` is the only place that touches `ffi` and `lib`; everyone else calls the typed
functions of kernels.py, segment.py and executor.py, which know owners, dtypes and contiguity.
"""

from typing import Any

import numpy as np

from hotcold.native.errors import BackendError, ConfigError, KernelError

try:
    from hotcold.native._kernels import ffi, lib
except ImportError as error:  # pragma: no cover - only without a build
    raise ImportError(
        "hotcold's C kernels are not built (hotcold.native._kernels is missing); in a checkout run "
        "`pip install -e .` or `make setup`, and do not run from the checkout's parent folder with "
        f"an installed wheel: {error}"
    ) from error

ABI_VERSION = 3
if lib.hc_abi_version() != ABI_VERSION or lib.HC_ABI_VERSION != ABI_VERSION:
    raise ImportError(
        f"hotcold.native._kernels has ABI {lib.hc_abi_version()}, this source expects "
        f"{ABI_VERSION}; rebuild with `pip install -e .`"
    )

__all__ = ["ABI_VERSION", "DTYPE_CODES", "check", "ffi", "last_error", "lib", "pointer"]

DTYPE_CODES: dict[str, int] = {"float32": 0, "float16": 1, "bfloat16": 2}


def last_error() -> str:
    """Text of this thread's last native failure."""
    return str(ffi.string(lib.hc_last_error()).decode())


def check(status: int) -> None:
    """Raise what status stands for; the one place where C errors become exceptions."""
    if status == lib.HC_OK:
        return
    text = last_error()
    if status == lib.HC_ERR_ARGUMENT:
        raise ConfigError(text)
    if status == lib.HC_ERR_MEMORY:
        raise MemoryError(text)
    if status == lib.HC_ERR_UNSUPPORTED:
        raise BackendError(text)
    raise KernelError(text)


def pointer(array: np.ndarray[Any, Any] | None, ctype: str) -> Any:
    """A ctype pointer to a C-contiguous array's data (NULL for None); the caller keeps it alive."""
    if array is None:
        return ffi.NULL
    if not array.flags.c_contiguous:
        raise ValueError(f"array of shape {array.shape} must be C-contiguous")
    return ffi.cast(ctype, array.ctypes.data)
