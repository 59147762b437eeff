"""`hotcold bench stores`: what the kernels read from each kind of weight store, in GB/s.

The three kinds hold the same bytes and take turns, so that a busy machine favours none of them.
Every round reads other neurons; with more bytes than the caches hold, they come from memory.
Measured are random gate rows of 4 KiB (d 2048, float16, no gate fires), random whole records of 30
KiB (d 5120, all fire), and a matrix from end to end (dense product, d 4096).
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.bindings import kernels
from hotcold.runtime.weights import host_memory as memory
from hotcold.runtime.weights import stores
from hotcold.runtime.weights.pages import HUGE_BYTES

Bytes = NDArray[np.uint8]
DEFAULT_BYTES = 2 << 30
DENSITY = 0.02  # short rounds: some are not disturbed even on a busy machine
PARTS = 64
ELEMENT = np.dtype(np.float16)


Run = Callable[[Bytes], int]  # reads from a store, returns how many bytes


def _ffn(d: int, sign: float, nbytes: int, rng: np.random.Generator, pool: kernels.Pool) -> Run:
    """Run one in fifty of the neurons the bytes hold; sign -1: no gate fires, 1: all do."""
    record = 3 * d * ELEMENT.itemsize
    n = nbytes // record
    ids = np.flatnonzero(rng.random(n) < DENSITY).astype(np.int32)
    x_BD = np.full((1, d), sign, np.float32)

    def run(weights: Bytes) -> int:
        records = weights[: n * record].view(ELEMENT).reshape(n, 3 * d)
        return kernels.ffn(records, ids, x_BD, pool=pool).bytes

    return run


def _gemv(d: int, nbytes: int, rng: np.random.Generator, pool: kernels.Pool) -> Run:
    rows = nbytes // (PARTS * d * ELEMENT.itemsize)
    begin = int(rng.integers(PARTS)) * rows * d * ELEMENT.itemsize
    x_BD = np.ones((1, d), np.float32)

    def run(weights: Bytes) -> int:
        part = weights[begin : begin + rows * d * ELEMENT.itemsize]
        kernels.gemv(part.view(ELEMENT).reshape(rows, d), x_BD, pool=pool)
        return part.nbytes

    return run


CASES: dict[str, Callable[[int, np.random.Generator, kernels.Pool], Run]] = {
    "rows_4k": partial(_ffn, 2048, -1.0),
    "records_30k": partial(_ffn, 5120, 1.0),
    "sequential": partial(_gemv, 4096),
}


def measure(
    nbytes: int = DEFAULT_BYTES, threads: tuple[int, ...] = (1, 2), rounds: int = 100
) -> dict[str, Any]:
    """Measure every case on every kind of store.

    A file of `nbytes` is written to the temporary folder. Returns by case, threads and kind: the
    best and the median rate, GB/s.

    Raises:
        BudgetError: memory for three copies is not there.
    """
    with three_kinds(nbytes) as weights:
        return {
            "bytes": len(weights["file"]),
            "cpu_variant": kernels.active_cpu_variant(),
            **_rates(weights, threads, rounds),
        }


@contextmanager
def three_kinds(nbytes: int) -> Iterator[dict[str, Bytes]]:
    """The same bytes in every kind of store, mapped, filled and in the page table.

    A file of this size lies in the temporary folder meanwhile.

    Raises:
        BudgetError: memory for three copies is not there.
    """
    nbytes = max(64 << 20, nbytes // HUGE_BYTES * HUGE_BYTES)
    memory.require(3 * nbytes, "the bench of weight stores", "give --size a smaller one")
    with tempfile.TemporaryDirectory(prefix="hotcold-stores-") as folder:
        path = Path(folder) / "weights.bin"
        _write_ones(path, nbytes)
        shared = stores.SharedCopy(path, nbytes, f"bench-{time.time_ns()}")
        private = stores.private_copy(path, nbytes, [(0, nbytes)])
        mapping = stores.map_file(path, nbytes)
        weights = {
            "file": np.frombuffer(mapping, np.uint8),
            "memfd": shared.pages.array(),
            "private": private.array(),
        }
        for held in weights.values():
            int(held[::4096].sum())  # in the page table, and the file's pages back in memory
        try:
            yield weights
        finally:
            shared.close()


def _write_ones(path: Path, nbytes: int) -> None:
    block = np.ones(HUGE_BYTES // ELEMENT.itemsize, ELEMENT).tobytes()
    with path.open("wb") as file:
        for _ in range(nbytes // len(block)):
            file.write(block)
        file.flush()


def _rates(weights: dict[str, Bytes], threads: tuple[int, ...], rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    nbytes = min(len(held) for held in weights.values())
    for count in threads:
        with kernels.Pool(count) as pool:
            for case, prepare in CASES.items():
                rates: dict[str, list[float]] = {kind: [] for kind in weights}
                for turn in range(rounds * len(weights)):
                    kind = list(weights)[turn % len(weights)]
                    run = prepare(nbytes, np.random.default_rng(turn), pool)
                    begin = time.perf_counter()
                    read = run(weights[kind])
                    rates[kind].append(read / (time.perf_counter() - begin) / 1e9)
                result.setdefault(case, {})[f"threads_{count}"] = {
                    kind: {
                        "best_gb_per_s": max(found),
                        "median_gb_per_s": statistics.median(found),
                    }
                    for kind, found in rates.items()
                }
    return result
