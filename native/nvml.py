"""What the NVIDIA driver says of the GPUs: how many, which, how much of their memory is in use.

Through libnvidia-ml, which needs no CUDA context: asking costs no device memory and works in a
process that will never use a GPU. Used to decide whether there is a GPU at all, and to hold a
memory budget against what all processes on the device really use.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class _Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, architecture ("90"), and memory in bytes."""

    name: str
    arch: str
    total_bytes: int
    used_bytes: int


@contextmanager
def _library() -> Iterator[ctypes.CDLL | None]:
    """NVML, initialised; None where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            raise OSError
    except (OSError, AttributeError):
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def gpus() -> list[Gpu]:
    """All GPUs of this machine, in the driver's order; empty without a driver."""
    with _library() as library:
        count = ctypes.c_uint()
        if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        return [_describe(library, index) for index in range(count.value)]


def _describe(library: ctypes.CDLL, index: int) -> Gpu:
    handle = ctypes.c_void_p()
    library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))
    name = ctypes.create_string_buffer(96)
    library.nvmlDeviceGetName(handle, name, ctypes.c_uint(96))
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), _Memory()
    library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    arch = f"{major.value}{minor.value}"
    return Gpu(name.value.decode(), arch, memory.total, memory.used)


def visible_index(default: int = 0) -> int:
    """NVML's index of the first GPU that CUDA_VISIBLE_DEVICES shows."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return int(first) if first.isdigit() else default


def used_bytes(index: int | None = None) -> int | None:
    """Bytes in use on a GPU by all processes; None without one."""
    found = gpus()
    at = visible_index() if index is None else index
    return found[at].used_bytes if at < len(found) else None


def busy_percent(index: int | None = None) -> int | None:
    """Per cent of the last moments (up to a second) in which a kernel ran; None without a GPU."""
    with _library() as library:
        handle, rates = ctypes.c_void_p(), (ctypes.c_uint * 2)()
        at = visible_index() if index is None else index
        if (
            library is None
            or library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(at), ctypes.byref(handle)) != 0
            or library.nvmlDeviceGetUtilizationRates(handle, rates) != 0
        ):
            return None
        return int(rates[0])
