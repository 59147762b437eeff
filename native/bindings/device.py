"""Typed face of the GPU plug-in (device.c): open it, make an executor's device, run one operator.

Keeps alive what the C side points to. Finding or building the library is cuda_plugin.py's part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import PHASES
from hotcold.native.bindings._ffi import failure, ffi, lib, pointer
from hotcold.native.errors import BackendError, KernelError


@dataclass(frozen=True)
class Mailbox:
    """hc_mailbox: how a predictor's own process reaches the GPU executor's memory; plain data."""

    handle: bytes
    address: int
    pid: int


@dataclass(frozen=True)
class DeviceArrays:
    """hc_device_args: how the GPU executor uses its GPU.

    Args:
        plugin: path of the plug-in library.
        bounds_LC: int32 [L, C + 1], neuron ids that cut each layer's hot neurons in C chunks.
        predictors: PredictorArrays by layer; empty: nothing is predicted.
        predict_steps: the predictor's program, or None.
        index: CUDA device.
        kv_dtype: "float32" or "float16".
        predictor_dtype: None: as given; "int8": quantised by row.
        vram_bytes: what may be allocated beside the context; 0: no limit.
        bus_LN: uint8 [L, N], 1 for owned neurons that stay in host memory, or None.
        host_parts_L: uint8 [L + 1], Part bits of the modules that stay there, or None; the last
            entry is the head's.
        prompt_rows: tokens of a dense prompt pass; 0: all prompts are sparse.
        launch_overlap: let a kernel start while the one before it ends.
        variant: a compiled CUDA variant whose kernels are asked first, or None.
        pass_flag: where the predictor has a process of its own, the flag by which it is told of
            passes; None: it has none.
        gpu_steps: for that process, the GPU executor's program.
        mailbox: for that process, the GPU executor's.
    """

    plugin: Path
    bounds_LC: NDArray[np.int32]
    predictors: Sequence[Any] = ()
    predict_steps: NDArray[Any] | None = None
    index: int = 0
    kv_dtype: str = "float32"
    predictor_dtype: str | None = None
    vram_bytes: int = 0
    bus_LN: NDArray[np.uint8] | None = None
    host_parts_L: NDArray[np.uint8] | None = None
    prompt_rows: int = 0
    launch_overlap: bool = True
    variant: Path | None = None
    pass_flag: int | None = None
    gpu_steps: NDArray[Any] | None = None
    mailbox: Mailbox | None = None


@dataclass(frozen=True)
class DeviceReport:
    """The last pass on the device: counts, times in nanoseconds by phase, memory in bytes.

    clock_error_ns bounds the error of the times of its spans, which are on the host's clock. asks
    and asked_ns are of a predictor with a process of its own: questions, and the time from each to
    its answer.
    """

    gate_rows: int
    up_down_rows: int
    bytes: int
    skipped_exchanges: int
    cold_neurons: int
    pass_ns: int
    phase_ns: dict[str, int]
    allocated_bytes: int
    pinned_bytes: int
    audit_rows: int = 0
    audit_missed: int = 0
    clock_error_ns: int = 0
    asks: int = 0
    asked_ns: int = 0


def open_plugin(path: Path) -> Any:
    """Load a plug-in library.

    Raises:
        BackendError: it cannot be loaded, or has another ABI.
    """
    plugin = lib.hc_device_open(str(path).encode())
    if plugin == ffi.NULL:
        raise failure()
    return plugin


class NativeDevice:
    """One actor's device, the GPU executor's or the predictor's; freed by close()."""

    def __init__(self, arrays: DeviceArrays, args: Any, predictors: Any, keep: list[Any]) -> None:
        c = ffi.new("hc_device_args *")
        c.index, c.kv_f16 = arrays.index, arrays.kv_dtype == "float16"
        c.predictor_i8 = arrays.predictor_dtype == "int8"
        bounds = np.ascontiguousarray(arrays.bounds_LC, np.int32)
        c.n_chunks, c.bounds_LC = bounds.shape[1] - 1, pointer(bounds, "int32_t *")
        c.vram_bytes, c.launch_overlap = arrays.vram_bytes, arrays.launch_overlap
        c.predictors_L = predictors
        c.prompt_rows = arrays.prompt_rows
        c.bus_LN = pointer(arrays.bus_LN, "uint8_t *")
        c.host_parts_L = pointer(arrays.host_parts_L, "uint8_t *")
        if arrays.variant is not None:
            c.variant = name = ffi.new("char[]", str(arrays.variant).encode())
            keep.append(name)
        steps = arrays.predict_steps
        if steps is not None and len(steps):
            c.predict_steps, c.n_predict_steps = pointer(steps, "hc_step *"), len(steps)
        self._set_remote(c, arrays)
        keep += [c, bounds, steps, arrays]
        self.c = lib.hc_device_create(open_plugin(arrays.plugin), args, c)
        if self.c == ffi.NULL:
            error = failure()
            raise BackendError(str(error)) if isinstance(error, KernelError) else error

    @staticmethod
    def _set_remote(c: Any, arrays: DeviceArrays) -> None:
        if arrays.pass_flag is None:
            return
        c.remote_predictor, c.pass_flag = True, arrays.pass_flag
        if arrays.gpu_steps is not None:
            c.gpu_steps, c.n_gpu_steps = (
                pointer(arrays.gpu_steps, "hc_step *"),
                len(arrays.gpu_steps),
            )
        if arrays.mailbox is not None:
            c.mailbox.handle = list(arrays.mailbox.handle)
            c.mailbox.address, c.mailbox.pid = arrays.mailbox.address, arrays.mailbox.pid

    def mailbox(self) -> Mailbox:
        """Of a GPU executor that asks another process: what that one opens."""
        c = ffi.new("hc_mailbox *")
        lib.hc_device_mailbox(self.c, c)
        return Mailbox(bytes(c.handle), c.address, c.pid)

    def report(self) -> DeviceReport:
        """Counts and times of the last pass."""
        c = ffi.new("hc_device_report *")
        lib.hc_device_report_last(self.c, c)
        return DeviceReport(
            *(c.gate_rows, c.up_down_rows, c.bytes, c.skipped_exchanges, c.cold_neurons, c.pass_ns),
            phase_ns=dict(zip(PHASES, list(c.phase_ns), strict=True)),
            allocated_bytes=c.allocated_bytes,
            pinned_bytes=c.pinned_bytes,
            audit_rows=c.audit_rows,
            audit_missed=c.audit_missed,
            clock_error_ns=c.clock_error_ns,
            asks=c.asks,
            asked_ns=c.asked_ns,
        )

    def close(self) -> None:
        """Free the device memory. Idempotent."""
        if self.c != ffi.NULL:
            lib.hc_device_destroy(self.c)
            self.c = ffi.NULL
