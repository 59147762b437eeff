"""`hotcold hardware`: this machine's rates, measured in under two minutes, as a MachineFile.

Runs the benches of this folder: random reads over the three kinds of store (stores.py, decode.py),
the feed-forward operator on active neurons (kernels.py), the exchange between resident loops
(hop.py), and, where there is a GPU, gpu_rates.py. Everything is read from memory that no cache
holds: stores and reads are sized by the last-level caches, which may have hundreds of MiB. The
figures are medians of reads that take turns, so that a slow moment affects all alike.

How the figures of the profile are chosen from what is measured:

    host_gb_per_s   records of 30 KiB (13B, float16), the best kind of store, as many threads as the
                    CPU executor has: all, beside a GPU all but two (cores.py)
    host_gflops     a dense product of 32 tokens with a matrix in the caches, as many threads
    sync_s          there and back between two resident loops, each on a core of its own if it can
    gpu_*, pcie_*   without a GPU, those of the host: the CPU device reads the same memory
"""

import datetime
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, product

import numpy as np

from hotcold.native.abi.formats import FORMATS
from hotcold.native.bindings import kernels
from hotcold.native.bindings.pool import Pool
from hotcold.native.errors import BackendError
from hotcold.native.gpu import cuda_plugin, nvml
from hotcold.runtime.bench import kernels as operators
from hotcold.runtime.bench.decode import read_rates
from hotcold.runtime.bench.gpu_rates import GpuRates, Row, four_digits, gpu_rates, neuron_row
from hotcold.runtime.bench.hop import measure_hop
from hotcold.runtime.bench.stores import three_kinds
from hotcold.runtime.hardware.caches import last_level_bytes
from hotcold.runtime.hardware.cores import divide_cores
from hotcold.runtime.hardware.machine_file import YARDSTICK, Figure, MachineFile
from hotcold.runtime.hardware.other_work import OtherWork
from hotcold.runtime.hardware.this_machine import identity
from hotcold.runtime.limits import processors
from hotcold.runtime.weights import host_memory as memory

RECORDS = (4 << 10, 12 << 10, 30 << 10, 60 << 10)  # bytes; 12: d 2048, 30: d 5120, both float16
SIDES = (1, 8)  # records read side by side
WIDTH, DENSITY = 4096, 10  # of the layer whose active neurons are timed; per cent that fire
LARGEST, SMALLEST = 1 << 30, 128 << 20
CACHES = 8  # times the last-level caches: what is read between two reads of the same bytes, or more
STEP = 64 << 20
ROWS, BATCH = 512, 32  # of the dense product that arithmetic is measured with
OTHERS = 0.1  # share of the cores that others use: more is doubtful
SPREAD = 1.25  # the best read over the median, likewise
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much and how long to measure.

    A read goes through `window` bytes of a store, the next one through the next; 0: all.
    """

    nbytes: int
    rounds: int
    samples: int
    hops: int
    window: int = 0

    @classmethod
    def choose(cls, quick: bool) -> "Effort":
        """About a minute of work, or ten seconds with quick, within an eighth of the memory.

        Each store is CACHES times as large as the caches; with quick, the three together are.
        """
        room = memory.available().nbytes // 8
        cold = CACHES * last_level_bytes() // (3 if quick else 1)
        window = LARGEST // 4 if quick else LARGEST
        nbytes = max(SMALLEST, min(max(window, cold), room) // STEP * STEP)
        window = min(window, nbytes)
        return cls(nbytes, 1, 7, 2000, window) if quick else cls(nbytes, 3, 21, 20_000, window)


def measure(
    name: str | None = None, quick: bool = False, progress: Progress = lambda _: None
) -> MachineFile:
    """Measure this machine.

    `quick` takes less memory and fewer rounds, for a first idea.

    Raises:
        BudgetError: no memory to measure with.
    """
    effort, others = Effort.choose(quick), OtherWork()
    machine = identity()
    beside_gpu = nvml.visible() is not None and cuda_plugin.mode() != "off"
    threads = divide_cores(None, None, processors(), gpu=beside_gpu)["cpu"].threads
    reads = host_reads(effort, sorted({*thread_counts(), threads}), progress)
    neurons = host_neurons(effort, threads, progress)
    progress("arithmetic")
    gflops = host_gflops(threads)
    exchanges = host_exchanges(effort, progress)
    figures = host_figures(reads, gflops, exchanges, threads)
    try:
        gpu: GpuRates | None = gpu_rates(progress)
    except BackendError as error:
        progress(f"no GPU figures: {error}")
        gpu = None
    if gpu is not None:
        figures |= gpu.figures
        neurons += gpu.neurons
        exchanges += gpu.exchanges
    machine["others_cores"] = round(others.cores(), 2)
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


def doubts(file: MachineFile) -> list[str]:
    """Why the figures of a file measured just now may be too low; none: the machine was quiet."""
    found, others = [], file.machine["others_cores"]
    if others > OTHERS * file.machine["cores"]:
        found.append(f"other programs kept {others:.1f} cores busy meanwhile")
    rate = file.figures["host_gb_per_s"].value
    best = max(
        row["best_gb_per_s"] / row["gb_per_s"]
        for row in file.tables["host_reads"]
        if row["gb_per_s"] == rate
    )
    if best > SPREAD:
        found.append(f"the fastest read of host memory was {best:.2f} times the median")
    return found


def thread_counts() -> list[int]:
    """From 1 to the cores that this process may use; on many cores only powers of two, and all."""
    cores = processors().at_once
    if cores <= 4:
        return list(range(1, cores + 1))
    return sorted({*(1 << i for i in range(cores.bit_length()) if 1 << i <= cores), cores})


def host_reads(effort: Effort, counts: list[int], progress: Progress) -> list[Row]:
    """Random reads by store, threads and record size; the better of 1 and 8 side by side."""
    window = effort.window or effort.nbytes
    progress(f"filling three stores of {effort.nbytes >> 20} MiB")
    rates: dict[tuple[str, int, int, int], list[float]] = {}
    with three_kinds(effort.nbytes) as weights:
        turns = cycle(range(0, effort.nbytes - window + 1, window))
        for threads in counts:
            progress(f"host reads, {threads} threads")
            with Pool(threads) as pool:
                # Until a window's turn comes again all the others are read: no cache holds it.
                for _, length, side in product(range(effort.rounds), RECORDS, SIDES):
                    begin = next(turns)
                    for kind, held in weights.items():
                        found = rates.setdefault((kind, threads, length, side), [])
                        at = int(held.ctypes.data) + begin
                        found += read_rates(at, window, length, pool, side)
    rows = []
    for kind, threads, length in dict.fromkeys(key[:3] for key in rates):
        both = [rates[kind, threads, length, side] for side in SIDES]
        rows.append(
            {
                "store": kind,
                "threads": threads,
                "record_bytes": length,
                "gb_per_s": four_digits(max(map(statistics.median, both))),
                "best_gb_per_s": four_digits(max(map(max, both))),
            }
        )
    return rows


def host_neurons(effort: Effort, threads: int, progress: Progress) -> list[Row]:
    """Time of an active neuron (all three rows) on the CPU by dtype, one thread and `threads`."""
    rows = []
    for dtype in FORMATS:
        progress(f"active neurons, {dtype}")
        result = operators.measure(
            operators.Settings(
                cases=("sparse_ffn",),
                widths=(WIDTH,),
                densities=(DENSITY,),
                dtype=dtype,
                threads=sorted({1, threads}),
                buffer_bytes=effort.nbytes,
                samples=effort.samples,
            )
        )
        record = 3 * FORMATS[dtype].read_bytes(WIDTH)
        case = result["sparse_ffn"][f"d{WIDTH}"][f"density{DENSITY}"]
        for key, figures in case.items():
            if isinstance(figures, dict):
                rate = figures["gb_per_s"]
                count = int(key.removeprefix("threads"))
                rows.append(neuron_row("cpu", dtype, count, WIDTH, record / rate / 1e9))
    return rows


def host_gflops(threads: int) -> float:
    """Multiply-adds of 32 tokens with a float16 matrix in the caches, 10**9 a second."""
    rng = np.random.default_rng(0)
    w_RD = rng.uniform(-1, 1, (ROWS, 1024)).astype(np.float16)
    x_BD = rng.uniform(-1, 1, (BATCH, 1024)).astype(np.float32)
    times = []
    with Pool(threads) as pool:
        for _ in range(50):
            begin = time.perf_counter()
            kernels.gemv(w_RD, x_BD, pool=pool)
            times.append(time.perf_counter() - begin)
    return 2.0 * BATCH * w_RD.size / statistics.median(times[5:]) / 1e9


def host_exchanges(effort: Effort, progress: Progress) -> list[Row]:
    """Round trips between resident loops, in processes of their own."""
    cores = processors().at_once
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
                "round_trip_us": four_digits(hop.p50_us * sides),
                "p99_round_trip_us": four_digits(hop.p99_us * sides),
            }
        )
    return rows


def host_figures(
    reads: list[Row], gflops: float, exchanges: list[Row], threads: int
) -> dict[str, Figure]:
    """The profile's figures on a machine without a GPU; see this module's docstring."""
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
        "host_gflops": Figure(four_digits(gflops), "measured", compute),
        "gpu_gflops": Figure(four_digits(gflops), "measured", f"no GPU: {compute}"),
        "sync_s": Figure(
            four_digits(sync["round_trip_us"] * 1e-6),
            "measured",
            f"round trip of the native exchange, {sync['what']}, median, no payload",
        ),
    }
