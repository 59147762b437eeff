"""Load the compiled kernels, compare the ABI, and turn a failure into an exception.

The folder `native/bindings` is the only place that touches `ffi` and `lib`; everyone else calls its
typed functions, which know owners, dtypes and contiguity.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from hotcold.native.abi import NOT_BUILT
from hotcold.native.abi.generated import ABI_VERSION, Status
from hotcold.native.abi.names import ACTIVATIONS, DTYPES, EPILOGUES, FORMS, NORMS, ROLES, WHEN
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

__all__ = ["check", "copied", "failure", "ffi", "lib", "new", "pointer"]

Row = TypeVar("Row")

# Fields that are given as words.
_WORDS: dict[str, Mapping[str, int]] = {
    "activation": ACTIVATIONS,
    "dtype": DTYPES,
    "epilogue": EPILOGUES,
    "form": FORMS,
    "norm": NORMS,
    "norm_kind": NORMS,
    "role": ROLES,
    "when": WHEN,
}
# What C structs point to, for as long as they are there.
_kept: "WeakKeyDictionary[Any, list[Any]]" = WeakKeyDictionary()


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


def pointer(array: np.ndarray[Any, Any] | None, ctype: Any) -> Any:
    """A ctype pointer to a C-contiguous array's data (NULL for None); the caller keeps it alive."""
    if array is None:
        return ffi.NULL
    if not array.flags.c_contiguous:
        raise ValueError(f"array of shape {array.shape} must be C-contiguous")
    return ffi.cast(ctype, array.ctypes.data)


def new(struct: str, /, **values: Any) -> Any:
    """A pointer to a new C struct of that name; fields that are not given are 0.

    A field that is a struct takes its fields; one that is a pointer None, an address, another
    struct or its fields, a list of the fields of each of several, text, or a C-contiguous array;
    the struct keeps alive what it points to. A code that has words takes its word (names.py).
    """
    c = ffi.new(f"{struct} *")
    _kept[c] = []
    _fill(struct, c, values, _kept[c])
    return c


def copied(struct: Any, row: type[Row]) -> Row:
    """A dataclass of a C struct's fields of the same names."""
    return row(**{name: getattr(struct, name) for name in row.__annotations__})


@cache
def _types(struct: str) -> dict[str, Any]:
    return {name: field.type for name, field in ffi.typeof(struct).fields}


def _fill(struct: str, c: Any, values: Mapping[str, Any], keep: list[Any]) -> None:
    for name, value in values.items():
        ctype = _types(struct)[name]
        if ctype.kind == "struct":
            _fill(ctype.cname, getattr(c, name), value, keep)
            continue
        given = _in_c(ctype, name, value, keep)
        keep += [value, given]
        setattr(c, name, given)


def _in_c(ctype: Any, name: str, value: Any, keep: list[Any]) -> Any:
    if ctype.kind != "pointer":
        return _WORDS[name][value] if isinstance(value, str) else value
    if isinstance(value, str | Path):
        return ffi.new("char[]", str(value).encode())
    if isinstance(value, int):
        return ffi.cast(ctype, value)
    if isinstance(value, Mapping):
        return new(ctype.item.cname, **value)
    if isinstance(value, list | tuple):
        rows = ffi.new(f"{ctype.item.cname}[]", len(value)) if value else ffi.NULL
        for row, fields in zip(rows if value else (), value, strict=True):
            _fill(ctype.item.cname, row, fields, keep)
        return rows
    return value if isinstance(value, ffi.CData) else pointer(value, ctype)
