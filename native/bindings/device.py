"""Typed face of the GPU plug-in (device.c): open it, make an executor's device, run one operator.

Keeps alive what the C side points to. Finding or building the library is cuda_plugin.py's part.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotcold.native.bindings._ffi import failure, ffi, lib, new
from hotcold.native.errors import BackendError, KernelError


@dataclass(frozen=True)
class Mailbox:
    """hc_mailbox: how a predictor's own process reaches the GPU executor's memory; plain data."""

    handle: bytes
    address: int
    pid: int


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
    """One actor's device, the GPU executor's or the predictor's; freed by close().

    args: an hc_executor_args; fields: of hc_device_args (abi/gpu.h), by name.

    Raises:
        BackendError: the plug-in cannot be loaded or refuses.
        BudgetError: its memory does not suffice.
    """

    def __init__(self, args: Any, plugin: Path, **fields: Any) -> None:
        self._args = new("hc_device_args", **fields)
        self.c = lib.hc_device_create(open_plugin(plugin), args, self._args)
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
