"""`hotcold hardware`: this machine's rates, measured in under two minutes, as a MachineFile.

Puts the probes of this folder together: random reads over the three kinds of store (stores.py,
decode.py), the feed-forward operator on active neurons (kernels.py), the exchange between resident
loops (hop.py), and, where there is a GPU, gpu_rates.py. Everything is read from memory that no
cache holds; what is reported is the median of reads that take turns, so that a slow moment hits all
alike. Writes nothing.

How the figures of the profile are chosen from what is measured:

    host_gb_per_s   records of 30 KiB (13B, float16), all threads, the best kind of store
    host_gflops     a dense product of 32 tokens with a matrix in the caches, all threads
    sync_s          there and back between two resident loops, each on a core of its own if it can
    gpu_*, pcie_*   without a GPU, those of the host: the CPU device reads the same memory
"""

import datetime
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hotcold.native import kernels
from hotcold.native.pool import Pool
from hotcold.native.timing import BYTES
from hotcold.runtime import memory
from hotcold.runtime.bench import kernels as operators
from hotcold.runtime.bench.decode import read_rates
from hotcold.runtime.bench.gpu_rates import GpuRates, gpu_rates
from hotcold.runtime.bench.hop import measure_hop
from hotcold.runtime.bench.stores import three_kinds
from hotcold.runtime.errors import BackendError
from hotcold.runtime.machine_file import YARDSTICK, Figure, MachineFile
from hotcold.runtime.this_machine import identity

RECORDS = (4 << 10, 12 << 10, 30 << 10, 60 << 10)  # bytes; 12: d 2048, 30: d 5120, both float16
SIDES = (1, 8)  # records read side by side
DTYPES = ("float32", "float16", "bfloat16")
WIDTH, DENSITY = 4096, 10  # of the layer whose active neurons are timed; per cent that fire
LARGEST, SMALLEST = 1 << 30, 128 << 20
ROWS, BATCH = 512, 32  # of the dense product that arithmetic is measured with
Row = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        nbytes: of each kind of store and of the operators' buffer.
        rounds: turns of every read.
        samples: timed calls of every operator.
        hops: round trips of every exchange.
    """

    nbytes: int
    rounds: int
    samples: int
    hops: int

    @classmethod
    def choose(cls, quick: bool) -> "Effort":
        """A minute's worth, or with quick some ten seconds', within an eighth of the memory."""
        room = memory.available().nbytes // 8 // (64 << 20) * (64 << 20)
        largest = LARGEST // 4 if quick else LARGEST
        nbytes = max(SMALLEST, min(largest, room))
        return cls(nbytes, 1, 7, 2000) if quick else cls(nbytes, 3, 21, 20_000)


def measure(
    name: str | None = None, quick: bool = False, progress: Progress = lambda _: None
) -> MachineFile:
    """Measure this machine.

    Args:
        name: of the machine; None: its CPU and GPU.
        quick: less memory and fewer rounds, for a first idea.
        progress: called with a line before each step, and why the GPU's steps are left out.

    Raises:
        BudgetError: no memory to measure with.
    """
    effort = Effort.choose(quick)
    machine = identity()
    reads = host_reads(effort, progress)
    neurons = host_neurons(effort, progress)
    progress("arithmetic")
    gflops = host_gflops()
    exchanges = host_exchanges(effort, progress)
    figures = host_figures(reads, gflops, exchanges)
    try:
        gpu: GpuRates | None = gpu_rates(progress)
    except BackendError as error:
        progress(f"no GPU figures: {error}")
        gpu = None
    if gpu is not None:
        figures |= gpu.figures
        neurons += gpu.neurons
        exchanges += gpu.exchanges
    about = ", ".join([f"{machine['cores']} cores of {machine['cpu']}", *machine["gpus"]])
    return MachineFile(
        name=name or about,
        about=f"{about}; {machine['memory_gib']} GiB, kernels {machine['kernels']}",
        date=datetime.date.today().isoformat(),
        has_gpu=gpu is not None,
        figures=figures,
        machine=machine,
        tables={"host_reads": reads, "neurons": neurons, "exchanges": exchanges},
    )


def thread_counts() -> list[int]:
    """1 to the cores this process may use; on many cores only powers of two and all of them."""
    cores = len(os.sched_getaffinity(0))
    if cores <= 4:
        return list(range(1, cores + 1))
    return sorted({*(1 << i for i in range(cores.bit_length()) if 1 << i <= cores), cores})


def host_reads(effort: Effort, progress: Progress) -> list[Row]:
    """Random reads by store, threads and record size; the better of 1 and 8 side by side."""
    progress(f"filling three stores of {effort.nbytes >> 20} MiB")
    rates: dict[tuple[str, int, int, int], list[float]] = {}
    with three_kinds(effort.nbytes) as weights:
        for threads in thread_counts():
            progress(f"host reads, {threads} threads")
            with Pool(threads) as pool:
                # Between two reads of a store the others are read: no cache holds it any more.
                turns = product(range(effort.rounds), RECORDS, SIDES, weights)
                for _, length, side, kind in turns:
                    at, size = int(weights[kind].ctypes.data), len(weights[kind])
                    found = rates.setdefault((kind, threads, length, side), [])
                    found += read_rates(at, size, length, pool, side)
    rows = []
    for kind, threads, length in dict.fromkeys(key[:3] for key in rates):
        both = [rates[kind, threads, length, side] for side in SIDES]
        rows.append(
            {
                "store": kind,
                "threads": threads,
                "record_bytes": length,
                "gb_per_s": _short(max(map(statistics.median, both))),
                "best_gb_per_s": _short(max(map(max, both))),
            }
        )
    return rows


def host_neurons(effort: Effort, progress: Progress) -> list[Row]:
    """Time of an active neuron (all three rows) on the CPU, by dtype, one thread and all."""
    rows = []
    for dtype in DTYPES:
        progress(f"active neurons, {dtype}")
        result = operators.measure(
            operators.Settings(
                cases=("sparse_ffn",),
                widths=(WIDTH,),
                densities=(DENSITY,),
                dtype=dtype,
                threads=sorted({1, thread_counts()[-1]}),
                buffer_bytes=effort.nbytes,
                samples=effort.samples,
            )
        )
        record = 3 * WIDTH * BYTES[dtype]
        case = result["sparse_ffn"][f"d{WIDTH}"][f"density{DENSITY}"]
        for key, figures in case.items():
            if isinstance(figures, dict):
                rate = figures["gb_per_s"]
                threads = int(key.removeprefix("threads"))
                rows.append(neuron_row("cpu", dtype, threads, WIDTH, record / rate / 1e9))
    return rows


def neuron_row(device: str, dtype: str, threads: int, d: int, seconds: float) -> Row:
    """A row of the table `neurons`, from the seconds of one gated neuron."""
    return {
        "device": device,
        "dtype": dtype,
        "threads": threads,
        "d_model": d,
        "us_per_neuron": _short(seconds * 1e6),
        "gb_per_s": _short(3 * d * BYTES[dtype] / seconds / 1e9),
    }


def host_gflops() -> float:
    """Multiply-adds of 32 tokens with a float16 matrix in the caches, 10**9 a second."""
    rng = np.random.default_rng(0)
    w_RD = rng.uniform(-1, 1, (ROWS, 1024)).astype(np.float16)
    x_BD = rng.uniform(-1, 1, (BATCH, 1024)).astype(np.float32)
    times = []
    with Pool(thread_counts()[-1]) as pool:
        for _ in range(50):
            begin = time.perf_counter()
            kernels.gemv(w_RD, x_BD, pool=pool)
            times.append(time.perf_counter() - begin)
    return 2.0 * BATCH * w_RD.size / statistics.median(times[5:]) / 1e9


def host_exchanges(effort: Effort, progress: Progress) -> list[Row]:
    """Round trips between resident loops, in processes of their own."""
    cores = len(os.sched_getaffinity(0))
    cases = [("two loops, unpinned", False, 2), ("three loops in a ring, unpinned", False, 3)]
    if cores >= 2:
        cases.insert(0, ("two loops, a core each", True, 2))
    if cores >= 3:
        cases.insert(1, ("three loops in a ring, a core each", True, 3))
    rows = []
    for what, pinned, sides in cases:
        progress(f"exchange, {what}")
        hop = measure_hop(effort.hops, pinned=pinned, sides=sides)
        rows.append(
            {
                "what": what,
                "round_trip_us": _short(hop.p50_us * sides),
                "p99_round_trip_us": _short(hop.p99_us * sides),
            }
        )
    return rows


def host_figures(reads: list[Row], gflops: float, exchanges: list[Row]) -> dict[str, Figure]:
    """The profile's figures on a machine without a GPU; see the head of this file."""
    threads = max(row["threads"] for row in reads)
    full = [r for r in reads if r["threads"] == threads and r["record_bytes"] == YARDSTICK]
    best = max(full, key=lambda row: float(row["gb_per_s"]))
    how = f"random records of 30 KiB, {best['store']}, {threads} threads, median"
    host = Figure(best["gb_per_s"], "measured", how)
    device = "no GPU: its CPU device reads host memory, "
    compute = f"float16 matrix in cache times {BATCH} tokens, {threads} threads"
    sync = exchanges[0]
    return {
        "host_gb_per_s": host,
        "gpu_gb_per_s": Figure(host.value, "measured", device + how),
        "pcie_gb_per_s": Figure(host.value, "measured", device + how),
        "host_gflops": Figure(_short(gflops), "measured", compute),
        "gpu_gflops": Figure(_short(gflops), "measured", f"no GPU: {compute}"),
        "sync_s": Figure(
            _short(sync["round_trip_us"] * 1e-6),
            "measured",
            f"round trip of the native exchange, {sync['what']}, median, no payload",
        ),
    }


def _short(value: float) -> float:
    """Four digits: nobody can measure more."""
    return float(f"{value:.4g}")
