"""The GPU's part of `hotcold hardware`: memory, bus, arithmetic, active neurons, exchange, gaps.

Operators come from the plug-in (native/bindings/device_kernels.py), the bus is measured through
libcuda. The exchange and the gaps only exist inside a captured graph, and are measured in graphs
that hold nothing else (native/cuda/operate/rates.cu), because bounds are computed from them and
must not depend on the speed of other kernels. For comparison the exchange is also measured in
passes of the embedded model: with one cold neuron per layer (a microsecond's work) against none.

Called by hardware.py. Without a GPU it says why and measures nothing.
"""

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import MAX_BATCH
from hotcold.native.bindings import device_kernels
from hotcold.native.bindings.device import open_plugin
from hotcold.native.errors import BackendError
from hotcold.native.gpu import cuda_plugin, cuda_probe, nvml
from hotcold.runtime.bench.gpu_exchange import exchange
from hotcold.runtime.bench.gpu_kernels import made_records
from hotcold.runtime.doctor.gpu_probe import LIBCUDA
from hotcold.runtime.engine.gpu import CONTEXT_BYTES
from hotcold.runtime.hardware.machine_file import Figure

ROWS, WIDTH, BATCH = 16384, 8192, 32  # 256 MiB of float16: more than any GPU's cache
NEURONS, D = 8192, 4096
REPEAT = 20
BUS_BYTES = 256 << 20
NODES, LAYERS, ROUNDS = 480, 48, 200  # of the graphs that gaps and the exchange are taken from
GRAPH_LAYERS = 40  # whose graphs are counted with the context
Row = dict[str, Any]  # of a table of a machine file


@dataclass(frozen=True)
class GpuRates:
    """Figures and table rows, as MachineFile holds them."""

    figures: dict[str, Figure]
    neurons: list[Row]
    exchanges: list[Row]


def gpu_rates(progress: Callable[[str], None]) -> GpuRates:
    """Measure the first GPU.

    Raises:
        BackendError: there is none that can be used; why.
    """
    if cuda_plugin.mode() == "off":
        raise BackendError("HOTCOLD_CUDA is off")
    if nvml.visible() is None:
        raise BackendError("no NVIDIA GPU is visible")
    found = cuda_plugin.find()
    if found is None:
        raise BackendError("the GPU kernels could not be loaded or built, see above")
    plugin = open_plugin(found.path)
    progress("GPU memory and arithmetic")
    bandwidth, gflops = _memory(plugin)
    progress("GPU, active neurons")
    neurons = [_neurons(plugin, dtype) for dtype in FORMATS]
    progress("bus between host and GPU")
    to_gpu, to_host = _bus()
    progress("captured exchange on the GPU")
    gap_s = four_digits(device_kernels.rate_of_gaps(plugin, NODES, ROUNDS))
    alone_s = device_kernels.rate_of_exchange(plugin, D, LAYERS, ROUNDS)
    sync_s = four_digits(max(alone_s, 1e-7))
    context = cuda_probe.context_bytes(found.path, *cuda_probe.graph_shape(GRAPH_LAYERS, MAX_BATCH))
    matrix = f"float16 matrix of {ROWS} x {WIDTH}"
    pinned = f"copies of {BUS_BYTES >> 20} MiB of pinned memory, median"
    figures = {
        "gpu_gb_per_s": Figure(bandwidth, "measured", f"{matrix} times one token, median"),
        "gpu_gflops": Figure(gflops, "measured", f"{matrix} times {BATCH} tokens, median"),
        "pcie_gb_per_s": Figure(to_gpu, "measured", pinned),
        "pcie_back_gb_per_s": Figure(to_host, "measured", pinned),
        "sync_s": Figure(
            sync_s, "measured", f"alone in a graph of {LAYERS} layers, rows of {D}, median"
        ),
        "gap_s": Figure(gap_s, "measured", f"a node of {NODES} in a graph, none does anything"),
        "context_bytes": Figure(
            context or CONTEXT_BYTES,
            "measured" if context else "estimated",
            "used memory by NVML before and after, kernels and graphs of 40 layers loaded"
            if context
            else "as on one H100; NVML did not tell",
        ),
    }
    return GpuRates(figures, neurons, _exchanges(sync_s))


def _exchanges(sync_s: float) -> list[Row]:
    row = {"what": "captured in a GPU graph, alone", "round_trip_us": sync_s * 1e6}
    rows = [{**row, "p99_round_trip_us": sync_s * 1e6}]
    if found := exchange():
        row = {"what": f"in passes of {found['layers']} layers, rows of {found['width']}"}
        p50, p99 = (max(found[name], 1e-3) for name in ("p50_us", "p99_us"))
        rows.append({**row, "round_trip_us": p50, "p99_round_trip_us": p99})
    return rows


def _memory(plugin: Any) -> tuple[float, float]:
    w_RD = np.ones((ROWS, WIDTH), np.float16)
    rates = []
    for batch in (1, BATCH):
        x_BD = np.ones((batch, WIDTH), np.float32)
        _, seconds = device_kernels.gemv(plugin, w_RD, "float16", x_BD, repeat=REPEAT)
        rates.append((w_RD.nbytes if batch == 1 else 2.0 * batch * w_RD.size) / seconds / 1e9)
    return four_digits(rates[0]), four_digits(rates[1])


def _neurons(plugin: Any, dtype: str) -> Row:
    records = made_records(NEURONS, D, dtype, np.ones(NEURONS, bool))
    bounds_C = np.linspace(0, NEURONS, 65).astype(np.int32)
    x_BD = np.full((1, D), 0.01, np.float32)
    _, _, seconds = device_kernels.ffn(plugin, records, dtype, x_BD, bounds_C, repeat=REPEAT)
    return neuron_row("gpu0", dtype, 1, D, seconds / NEURONS)


def _bus() -> tuple[float, float]:
    """GB/s of copies from pinned host memory to the GPU, and back; BackendError as the driver's."""
    try:
        cuda = ctypes.CDLL(LIBCUDA)
    except OSError as error:
        raise BackendError(f"{LIBCUDA} cannot be loaded") from error

    def call(name: str, *arguments: Any) -> None:
        status = getattr(cuda, name)(*arguments)
        if status:
            raise BackendError(f"{name} failed with CUDA error {status}")

    context, host, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    index, size = ctypes.c_int(), ctypes.c_size_t(BUS_BYTES)
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(index), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), index)
    try:
        call("cuCtxSetCurrent", context)
        call("cuMemHostAlloc", ctypes.byref(host), size, 0)
        call("cuMemAlloc_v2", ctypes.byref(device), size)
        rates = []
        for name, to, source in (
            ("cuMemcpyHtoD_v2", device, host),
            ("cuMemcpyDtoH_v2", host, device),
        ):
            times = []
            for _ in range(REPEAT):
                begin = time.perf_counter()
                call(name, to, source, size)
                times.append(time.perf_counter() - begin)
            rates.append(four_digits(BUS_BYTES / statistics.median(times[1:]) / 1e9))
    finally:
        if device.value:
            cuda.cuMemFree_v2(device)
        if host.value:
            cuda.cuMemFreeHost(host)
        cuda.cuDevicePrimaryCtxRelease_v2(index)
    return rates[0], rates[1]


def neuron_row(device: str, dtype: str, threads: int, d: int, seconds: float) -> Row:
    """A row of the table `neurons`, from the seconds of one gated neuron."""
    return {
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "d_model": d,
        "us_per_neuron": four_digits(seconds * 1e6),
        "gb_per_s": four_digits(3 * FORMATS[dtype].read_bytes(d) / seconds / 1e9),
    }


def four_digits(value: float) -> float:
    """Round to four digits: more cannot be measured."""
    return float(f"{value:.4g}")
