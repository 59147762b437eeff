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
    """One GPU: its name, architecture ("90"), memory in bytes, and the driver's id ("GPU-...")."""

    name: str
    arch: str
    total_bytes: int
    used_bytes: int
    uuid: str = ""


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
    uuid = ctypes.create_string_buffer(96)
    library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(96))
    arch = f"{major.value}{minor.value}"
    return Gpu(name.value.decode(), arch, memory.total, memory.used, uuid.value.decode())


def visible() -> Gpu | None:
    """The GPU that CUDA calls 0 in this process; None where there is none, or it is hidden."""
    found = gpus()
    at = _first_visible(found)
    return None if at is None else found[at]


def _first_visible(found: list[Gpu]) -> int | None:
    """Index of the first GPU that CUDA_VISIBLE_DEVICES shows, read as CUDA does.

    A number, or the beginning of an id; what is neither hides all that follow. Of a part of a GPU
    (MIG-...) only the driver knows whose it is: the first is taken.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if shown is None else shown.partition(",")[0].strip()
    if first.startswith("MIG-"):
        first = "0"
    if first.startswith("GPU-"):
        matching = [at for at, gpu in enumerate(found) if gpu.uuid.startswith(first)]
        return matching[0] if len(matching) == 1 else None
    at = int(first) if first.isascii() and first.isdigit() else len(found)
    return at if at < len(found) else None


def visible_index() -> int:
    """NVML's index of that GPU; 0 where there is none."""
    return _first_visible(gpus()) or 0


def used_bytes() -> int | None:
    """Bytes in use on that GPU by all processes; None without one."""
    found, at = gpus(), visible_index()
    return found[at].used_bytes if at < len(found) else None


def busy_percent() -> int | None:
    """Per cent of the last moments (up to a second) in which a kernel ran; None without a GPU."""
    with _library() as library:
        handle, rates = ctypes.c_void_p(), (ctypes.c_uint * 2)()
        index = ctypes.c_uint(visible_index())
        if (
            library is None
            or library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0
            or library.nvmlDeviceGetUtilizationRates(handle, rates) != 0
        ):
            return None
        return int(rates[0])
