"""Typed face of the GPU plug-in (device.c): open it, make an executor's device, run one operator.

Keeps alive what the C side points to. Finding or building the library is cuda_plugin.py's part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings._ffi import failure, ffi, lib, new, new_rows
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
        predictors: as of ExecutorArrays.
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
    predictors: Sequence[Mapping[str, Any]] = ()
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


def _length(steps: NDArray[Any] | None) -> int:
    return 0 if steps is None else len(steps)


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

    def __init__(self, arrays: DeviceArrays, args: Any) -> None:
        bounds = np.ascontiguousarray(arrays.bounds_LC, np.int32)
        remote = arrays.pass_flag is not None
        c = self._args = new(
            "hc_device_args",
            index=arrays.index,
            kv_f16=arrays.kv_dtype == "float16",
            predictor_i8=arrays.predictor_dtype == "int8",
            n_chunks=bounds.shape[1] - 1,
            vram_bytes=arrays.vram_bytes,
            bounds_LC=bounds,
            predictors_L=new_rows("hc_predictor_layer", arrays.predictors),
            predict_steps=arrays.predict_steps,
            n_predict_steps=_length(arrays.predict_steps),
            launch_overlap=arrays.launch_overlap,
            bus_LN=arrays.bus_LN,
            host_parts_L=arrays.host_parts_L,
            prompt_rows=arrays.prompt_rows,
            variant=arrays.variant,
            remote_predictor=remote,
            pass_flag=arrays.pass_flag or 0,
            gpu_steps=arrays.gpu_steps if remote else None,
            n_gpu_steps=_length(arrays.gpu_steps) if remote else 0,
            mailbox=vars(arrays.mailbox) if arrays.mailbox and remote else {},
        )
        self.c = lib.hc_device_create(open_plugin(arrays.plugin), args, c)
        if self.c == ffi.NULL:
            error = failure()
            raise BackendError(str(error)) if isinstance(error, KernelError) else error

    def mailbox(self) -> Mailbox:
        """Of a GPU executor that asks another process: what that one opens."""
        c = ffi.new("hc_mailbox *")
        lib.hc_device_mailbox(self.c, c)
        return Mailbox(bytes(c.handle), c.address, c.pid)

    def report(self) -> Any:  # noqa: ANN401 - a C struct
        """Counts and times of the last pass: an hc_device_report (abi/gpu.h)."""
        c = ffi.new("hc_device_report *")
        lib.hc_device_report_last(self.c, c)
        return c

    def close(self) -> None:
        """Free the device memory. Idempotent."""
        if self.c != ffi.NULL:
            lib.hc_device_destroy(self.c)
            self.c = ffi.NULL
