"""A private copy of the cold neurons on huge pages, for the CPU executor's own reading.

Neuron records are read at random, 30 KB at a time and in the last phase 256 bytes at a time; with
4 KB pages that is a page walk every few lines, and on a virtual machine a walk is two-dimensional.
The copy costs its bytes a second time, so it is made only where it was asked for. Records keep
their place by neuron id; only the layers' records are copied, nothing else.
"""

import ctypes
import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.errors import ConfigError

HUGE = 2 << 20
MADV_HUGEPAGE = 14
COPY_THREADS = 8


class HugeRecords:
    """Copies of whole record tables; `addresses` are valid until close().

    Args:
        tables: uint8 [N, record_bytes] of each layer.

    Raises:
        ConfigError: there is no memory for them.
    """

    def __init__(self, tables: list[NDArray[np.uint8]]) -> None:
        sizes = [-(-table.nbytes // HUGE) * HUGE for table in tables]
        total = sum(sizes) + HUGE
        try:
            self._memory: mmap.mmap | None = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE)
        except OSError as error:
            raise ConfigError(
                f"no memory for a copy of {total / 1e9:.1f} GB of neurons on huge pages "
                f"({error}); leave cold_store at 'file'"
            ) from error
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(self._memory, np.uint8)
        base = self._bytes.ctypes.data
        skip = -base % HUGE
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(base + skip), ctypes.c_size_t(total - HUGE), MADV_HUGEPAGE
        )  # advisory: without it the copy is on small pages, and right
        starts = skip + np.cumsum([0, *sizes[:-1]])
        self.addresses = [base + int(start) for start in starts]
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            list(pool.map(self._copy, starts.tolist(), tables))

    def _copy(self, start: int, table: NDArray[np.uint8]) -> None:
        assert self._bytes is not None
        self._bytes[start : start + table.nbytes] = table.reshape(-1)

    def close(self) -> None:
        """Free the copy. Idempotent."""
        memory, self._memory, self._bytes = self._memory, None, None
        if memory is not None:
            memory.close()
