"""Load the compiled kernels, compare the ABI, and turn a failure into an exception.

The folder `native/bindings` is the only place that touches `ffi` and `lib`; everyone else calls its
typed functions, which know owners, dtypes and contiguity.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hotcold.native.abi import NOT_BUILT
from hotcold.native.abi.generated import ABI_VERSION, Status
from hotcold.native.errors import BackendError, BudgetError, ConfigError, KernelError

try:
    from hotcold.native._kernels import ffi, lib
except ImportError as error:  # pragma: no cover - only without a build
    raise ImportError(f"{NOT_BUILT.format('hotcold.native._kernels')}: {error}") from error

if lib.hc_abi_version() != ABI_VERSION or lib.HC_ABI_VERSION != ABI_VERSION:
    raise ImportError(
        f"hotcold.native._kernels has ABI {lib.hc_abi_version()}, hotcold.native.abi.generated "
        f"{ABI_VERSION}; rebuild both with `pip install -e .`"
    )

__all__ = ["check", "failure", "ffi", "last_error", "lib", "pointer"]


def last_error() -> str:
    """Text of this thread's last native failure."""
    return str(ffi.string(lib.hc_last_error().text).decode())


def check(status: int) -> None:
    """Raise what a call's status stands for."""
    if status != Status.OK:
        raise failure()


def failure(error: Any = None) -> Exception:
    """The exception that an hc_error stands for, this thread's last one for None."""
    error = error or lib.hc_last_error()
    text: str = ffi.string(error.text).decode()
    make = _EXCEPTIONS.get(error.status)
    return KernelError(text) if make is None else make(text, int(error.value), int(error.limit))


def _over_budget(text: str, value: int, limit: int) -> Exception:
    return BudgetError(
        f"{text}: it needs {value} bytes of GPU memory beside the context, the budget leaves "
        f"{limit}; raise --vram or use a smaller context",
        needed_bytes=value,
        budget_bytes=limit,
    )


def _gpu_full(text: str, value: int, limit: int) -> Exception:
    free = f", {value >> 20} of {limit >> 20} MiB of the GPU are free" if limit else ""
    return BudgetError(
        f"{text}{free}; lower --vram, or end what else holds its memory", budget_bytes=value
    )


def _not_pinned(text: str, value: int, limit: int) -> Exception:
    return BudgetError(
        f"{text}; {value >> 20} MiB were asked for: raise --vram so that less is read over the "
        "bus, or free memory",
        needed_bytes=value,
    )


_EXCEPTIONS: dict[int, Callable[[str, int, int], Exception]] = {
    Status.ERR_ARGUMENT: lambda text, value, limit: ConfigError(text),
    Status.ERR_MEMORY: lambda text, value, limit: MemoryError(text),
    Status.ERR_UNSUPPORTED: lambda text, value, limit: BackendError(text),
    Status.ERR_BUDGET: _over_budget,
    Status.ERR_GPU_MEMORY: _gpu_full,
    Status.ERR_PINNED: _not_pinned,
}


def pointer(array: np.ndarray[Any, Any] | None, ctype: str) -> Any:
    """A ctype pointer to a C-contiguous array's data (NULL for None); the caller keeps it alive."""
    if array is None:
        return ffi.NULL
    if not array.flags.c_contiguous:
        raise ValueError(f"array of shape {array.shape} must be C-contiguous")
    return ffi.cast(ctype, array.ctypes.data)
