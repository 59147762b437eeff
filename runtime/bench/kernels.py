"""bench kernels: bytes per second of every operator and of reading alone, from cold memory.

An operator on one token is bound by reading weights, so it is compared with reading rows of the
same length in the same run, from the same buffer. The buffer is larger than any cache, and nothing
in it is read again before all of it was; reads and operators take turns, so that a slow moment of
the machine affects both. A fraction above 1.05 would mean a warm cache.
"""

import mmap
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import lines
from hotcold.native.bindings.kernels import Pool, active_cpu_variant, force_cpu_variant
from hotcold.native.bindings.timing import timed_attention, timed_ffn, timed_gemv, timed_read
from hotcold.native.errors import ConfigError
from hotcold.runtime.bench.nested import found, put
from hotcold.runtime.weights.host_memory import require

CASES = ("sparse_ffn", "gate_first", "gemv", "attention")
WIDTHS = (2048, 4096, 5120)
DENSITIES = (5, 10, 30, 100)
HEAD_DIM, CONTEXT = 128, 1024
SIDES = (1, 4, 8)  # rows read side by side; which is fastest depends on their length
WARM = 1.05
USUAL = 0x28  # byte of int8 records, weights and scales alike
STEADY = 0.75  # median read over best; about 0.9 on an idle machine

Call = Callable[[int, NDArray[np.int32]], tuple[float, int]]
Slot = tuple[int, NDArray[np.int32]]  # an address and the ids of the rows to touch there


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Densities are per cent of neurons that fire. The attention caches are always float32. `variant`
    names a loaded variant to time beside the one in force.
    """

    cases: Sequence[str] = CASES
    widths: Sequence[int] = WIDTHS
    densities: Sequence[int] = DENSITIES
    dtype: str = "float16"
    threads: Sequence[int] = (1,)
    buffer_bytes: int = 2 << 30
    samples: int = 21
    variant: str | None = None


class ColdBuffer:
    """Private memory on huge pages, full of small positive weights of one dtype.

    Raises:
        BudgetError: there is no room for it.
    """

    def __init__(self, size: int, dtype: str) -> None:
        self.size = size // mmap.PAGESIZE * mmap.PAGESIZE
        if self.size <= 0:
            raise ConfigError(
                f"a buffer of {size} bytes to walk through; at least a page is needed"
            )
        require(self.size, "the buffer to walk through", "lower --buffer", private=True)
        memory = mmap.mmap(-1, self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        values = np.random.default_rng(1).uniform(0.01, 0.03, 1 << 20).astype(np.float32)
        pattern: NDArray[Any] = values
        if dtype == "int8":  # scales too: 0x28 to 0x2b is small and positive as either byte of one
            pattern = (values * 3e3).astype(np.int8) % 4 + np.int8(USUAL)
        elif dtype == "float16":
            pattern = values.astype(np.float16)
        elif dtype == "bfloat16":
            pattern = (values.view(np.uint32) >> 16).astype(np.uint16)
        self.values = np.frombuffer(memory, pattern.dtype)
        for at in range(0, self.values.size, pattern.size):
            part = self.values[at : at + pattern.size]
            part[:] = pattern[: part.size]
        self._shut = np.empty(0, np.int64)
        self.dtype, self.address = dtype, int(self.values.ctypes.data)

    def shut(self, d: int, shut_N: NDArray[np.bool_]) -> None:
        """Make some records of d so negative that their gate stays shut: the first weight.

        Of int8 the scales of the gate row. What an earlier call shut is opened again.
        """
        of = FORMATS[self.dtype]
        negative, usual = {"bfloat16": (0xC61C, 0x3CA4), "int8": (USUAL - 128, USUAL)}.get(
            self.dtype, (-1e4, 0.02)
        )
        self.values[self._shut] = usual
        record = lines(3 * of.part_bytes(d)) // of.weight_bytes
        signs = of.scales(d) + 1 + 2 * np.arange(of.groups(d)) if of.group else np.zeros(1, int)
        self._shut = (np.flatnonzero(shut_N)[:, None] * record + signs).ravel()
        self.values[self._shut] = negative


def measure(settings: Settings, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure every case; nested plain data, units in the names.

    Raises:
        BudgetError: no room for the buffer.
        ConfigError: a buffer too small for a case.
    """
    buffer = ColdBuffer(settings.buffer_bytes, settings.dtype)
    result: dict[str, Any] = {
        "cpu_variant": active_cpu_variant(),
        "dtype": settings.dtype,
        "buffer_bytes": buffer.size,
    }
    for name, path, case in _cases(settings, buffer):
        progress(f"{name} {' '.join(path)}")
        put(result, (name, *path), _over_threads(case, settings))
    return result


@dataclass(frozen=True)
class Case:
    """One operator on one shape: how to make it, what to read, which slots to visit."""

    make: Callable[[Pool], Call]
    stride_bytes: int
    row_bytes: int
    slots: list[Slot]


def _cases(settings: Settings, buffer: ColdBuffer) -> Iterator[tuple[str, tuple[str, ...], Case]]:
    for d in settings.widths:
        for name in settings.cases:
            if name in ("sparse_ffn", "gate_first"):
                make = _sparse if name == "sparse_ffn" else _gate_first
                for density in settings.densities:
                    yield name, (f"d{d}", f"density{density}"), make(buffer, d, density)
            else:
                yield name, (f"d{d}",), (_gemv if name == "gemv" else _attention)(buffer, d)


def _layers(buffer: ColdBuffer, d: int) -> tuple[int, int, int]:
    """Bytes of a record, neurons of a layer, layers that fit; ConfigError below 100 records."""
    record = lines(3 * FORMATS[buffer.dtype].part_bytes(d))
    n = min(4 * d, buffer.size // record)
    if n < 100:
        raise ConfigError(f"a buffer of {buffer.size} bytes is too small for d {d}; give --buffer")
    return record, n, buffer.size // (record * n)


def _sparse(buffer: ColdBuffer, d: int, density: int) -> Case:
    """Lists of neurons that all fire: random ones, no record twice before all were read."""
    record, n, layers = _layers(buffer, d)
    buffer.shut(d, np.zeros(0, bool))
    parts = max(1, round(100 / density))
    order = np.random.default_rng(d + density).permutation(n).astype(np.int32)
    lists = [np.sort(order[part::parts]) for part in range(parts)]
    slots = [(buffer.address + i * n * record, ids) for ids in lists for i in range(layers)]
    return Case(lambda pool: timed_ffn(d, n, buffer.dtype, _x(d), pool), record, record, slots)


def _gate_first(buffer: ColdBuffer, d: int, density: int) -> Case:
    """Every neuron is listed, a share of the gates fires; the yardstick reads the gate rows."""
    record, n, layers = _layers(buffer, d)
    fires = np.random.default_rng(d + density).random(layers * n) * 100 < density
    buffer.shut(d, ~fires)
    ids = np.arange(n, dtype=np.int32)
    slots = [(buffer.address + i * n * record, ids) for i in range(layers)]
    row = lines(FORMATS[buffer.dtype].part_bytes(d))
    return Case(lambda pool: timed_ffn(d, n, buffer.dtype, _x(d), pool), record, row, slots)


def _gemv(buffer: ColdBuffer, d: int) -> Case:
    row = lines(FORMATS[buffer.dtype].part_bytes(d))
    rows = min(d, buffer.size // row)
    ids = np.arange(rows, dtype=np.int32)
    count = buffer.size // (rows * row)
    slots = [(buffer.address + i * rows * row, ids) for i in range(count)]
    return Case(lambda pool: timed_gemv(rows, d, buffer.dtype, _x(d), pool), row, row, slots)


def _attention(buffer: ColdBuffer, d: int) -> Case:
    """Caches one after the other; the buffer's bits are small, finite numbers as float32, too."""
    heads = d // HEAD_DIM
    row = CONTEXT * HEAD_DIM * 4  # a head's keys are contiguous
    size = 2 * heads * row
    count = buffer.size // size
    if not count:
        raise ConfigError(
            f"a buffer of {buffer.size} bytes holds no cache of {size}; give --buffer"
        )
    ids = np.arange(2 * heads, dtype=np.int32)
    slots = [(buffer.address + i * size, ids) for i in range(count)]

    def make(pool: Pool) -> Call:
        return timed_attention(heads, HEAD_DIM, CONTEXT, _x(heads * HEAD_DIM), pool)

    return Case(make, row, row, slots)


def _x(d: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).uniform(0.005, 0.015, d).astype(np.float32)


def _over_threads(case: Case, settings: Settings) -> dict[str, Any]:
    by_threads = {}
    for threads in settings.threads:
        with Pool(threads) as pool:
            by_threads[f"threads{threads}"] = _take_turns(case, settings, pool)
    lowest = min(figures["bandwidth_fraction"] for figures in by_threads.values())
    return {"bandwidth_fraction": lowest, **by_threads}


def _take_turns(case: Case, settings: Settings, pool: Pool) -> dict[str, Any]:
    operator, built_in = case.make(pool), active_cpu_variant()

    def reader(side: int) -> Call:
        return timed_read(case.stride_bytes, case.row_bytes, side, pool)

    kinds: dict[str, tuple[Call, str | None]] = {
        **{f"read{side}": (reader(side), None) for side in SIDES},
        "built_in": (operator, None),
    }
    if settings.variant is not None:
        kinds["variant"] = (operator, settings.variant)
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    touched: dict[str, int] = {}
    slots = cycle(case.slots)
    for turn in range(settings.samples + 1):
        for name, (call, variant) in kinds.items():
            base, ids = next(slots)
            if variant is not None:
                force_cpu_variant(variant)
            try:
                seconds, touched[name] = call(base, ids)
            finally:
                if variant is not None:
                    force_cpu_variant(built_in)
            if turn:  # the first call warms up code, stack and page tables
                rates[name].append(touched[name] / seconds / 1e9)
    return _figures(rates, touched)


def _figures(rates: dict[str, list[float]], touched: dict[str, int]) -> dict[str, Any]:
    reads = [rates[f"read{side}"] for side in SIDES]
    read, read_best = max(reads, key=statistics.median), max(map(max, reads))

    def of(name: str) -> dict[str, Any]:
        median, best = statistics.median(rates[name]), max(rates[name])
        return {
            "bandwidth_fraction": median / statistics.median(read),
            "bandwidth_fraction_best": best / read_best,
            "gb_per_s": median,
            "gb_per_s_best": best,
            "time_s": touched[name] / median / 1e9,
            "bytes": touched[name],
        }

    figures = of("built_in")
    figures["read_gb_per_s"], figures["read_gb_per_s_best"] = statistics.median(read), read_best
    figures["steadiness"] = statistics.median(read) / read_best
    if "variant" in rates:
        figures["variant"] = of("variant")
        figures["variant_speedup"] = figures["variant"]["gb_per_s"] / figures["gb_per_s"]
    return figures


def doubts(result: dict[str, Any]) -> list[str]:
    """Reasons to doubt a result: a machine busy with other work, or a warm cache."""
    measured = [one for _, one in found(result, "steadiness")]
    texts = []
    if any(one["steadiness"] < STEADY for one in measured):
        texts.append("the machine was busy: medians say little, compare the columns `best`")
    elif any(one["bandwidth_fraction"] > WARM for one in measured):
        texts.append("a fraction above 1.05 means a warm cache; raise --buffer")
    return texts
