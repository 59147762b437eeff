"""WeightStore: the one place where weights are in memory, one copy a machine.

Holds a bundle's weights.bin in one of the ways of `hotcold.runtime.weights.stores`, so that any
number of actors on a machine share the bytes. Executors ask for addresses; predictors and offline
commands ask for arrays. Weights are not converted here.

Measured 2026-11-22 on 2 cores of a virtual Xeon with AVX-512 (Linux 6.18, THP "madvise", shmem THP
"never"), stores of 2 GiB, one thread, best of 40 to 120 rounds in turns, GB/s:

| read                        | file | memfd | private | by                           |
|-----------------------------|------|-------|---------|------------------------------|
| 4 KiB rows, random order    |  7.3 |  10.7 |    10.7 | plain loads                  |
| 30 KiB records, random      | 10.3 |  14.2 |    14.3 | plain loads                  |
| end to end                  | 15.3 |  16.2 |    16.2 | plain loads                  |
| 4 KiB gate rows, ascending  | 12.5 |  12.4 |    12.7 | hc_ffn, quiet machine        |
| 4 KiB gate rows, ascending  |  6.3 |   9.4 |    10.3 | hc_ffn, other programs alive |
| 30 KiB records, ascending   | 13.8 |  13.9 |    13.9 | hc_ffn, quiet machine        |
| end to end                  | 14.0 |  14.1 |    14.3 | hc_gemv, quiet machine       |

Two threads had no quiet machine: medians 6.4, 6.5, 6.4 (rows) and 7.9, 8.0, 8.1 (records). So memfd
is as fast as private and is a single copy: it is the default from MEMFD_FROM_BYTES on. Filling
takes 0.3 s per GiB in addition to reading, at every start; smaller models use the file's pages. To
measure again: `hotcold bench stores`.
"""

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, Raw, to_float32
from hotcold.runtime.model.checkpoints.layout import TensorEntry
from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.model.neurons import ROWS
from hotcold.runtime.options.config import STORES
from hotcold.runtime.weights import stores
from hotcold.runtime.weights.pages import Pages

STORE_VARIABLE = "HOTCOLD_STORE"
MEMFD_FROM_BYTES = 256 << 20


def choose_store(asked: str | None, nbytes: int) -> str:
    """The kind asked for, $HOTCOLD_STORE, or by the weights' size; ConfigError: no such kind."""
    kind = asked or os.environ.get(STORE_VARIABLE) or None
    if kind is None:
        return "memfd" if nbytes >= MEMFD_FROM_BYTES else "file"
    if kind not in STORES:
        raise ConfigError(
            f"weight store {kind!r:.80} is unknown; choose one of {', '.join(STORES)}"
        )
    return kind


class WeightStore:
    """The weights of one bundle; make it with `open`."""

    def __init__(
        self,
        bundle: Bundle,
        memory: NDArray[np.uint8],
        closing: "mmap.mmap | stores.SharedCopy",
        records: Pages | None = None,
    ) -> None:
        self.bundle = bundle
        self._bytes: NDArray[np.uint8] | None = memory
        self._closing: mmap.mmap | stores.SharedCopy | None = closing
        self._records = records  # private copy of those this process owns, at the same offsets

    @classmethod
    def open(
        cls, bundle: Bundle, kind: str = "file", own_ids: Sequence[NDArray[np.int32]] | None = None
    ) -> "WeightStore":
        """Hold the weights of an opened bundle in one of the ways of stores.py.

        own_ids: by layer, the neurons this process computes from private memory (None: none of
        them); for kind "private" alone.

        Raises:
            ConfigError: unknown kind.
            BudgetError: not enough memory for the kind; nothing was filled.
            CheckpointError: the file is gone or has another size than when it was opened.
        """
        kind = choose_store(kind, bundle.weights_bytes)
        path, nbytes = bundle.weights_path, bundle.weights_bytes
        if kind == "memfd":
            shared = stores.SharedCopy(path, nbytes, bundle.checksum)
            return cls(bundle, shared.pages.array(), shared)
        mapping = stores.map_file(path, nbytes)
        records = None
        if kind == "private" and own_ids is not None:
            try:
                records = stores.private_copy(path, nbytes, _extents(bundle, own_ids))
            except BaseException:
                mapping.close()
                raise
        return cls(bundle, np.frombuffer(mapping, np.uint8), mapping, records)

    def _entry(self, name: str) -> TensorEntry:
        entry = self.bundle.tensors.get(name)
        if entry is None:
            raise ConfigError(f"bundle {self.bundle.name} has no tensor {name!r:.80}")
        return entry

    def _memory(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            raise ConfigError(f"the weight store of {self.bundle.name} is closed; open it again")
        return self._bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.bundle.weights_bytes

    def address(self, name: str) -> int:
        """Address of a tensor's first byte, for the native side; valid until close().

        Behind the address of a layer's neurons, a private store has the records of own_ids only.

        Raises:
            ConfigError: no such tensor, or the store is closed.
        """
        base, offset = int(self._memory().ctypes.data), self._entry(name).offset
        if self._records is not None and name.endswith(".neurons"):
            base = self._records.address
        return base + offset

    def array(self, name: str) -> Raw:
        """A tensor as stored, read-only, without a copy: bfloat16 as uint16, neurons as uint8.

        The array keeps the mapping alive beyond close().

        Raises:
            ConfigError: no such tensor, or the store is closed.
        """
        entry = self._entry(name)
        raw = self._memory()[entry.offset : entry.offset + entry.size]
        if entry.dtype != "uint8":
            raw = raw.view(RAW_TYPES[entry.dtype])
        return raw.reshape(entry.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """A copy of a matrix, norm or bias in float32; exact.

        Raises:
            ConfigError: no such tensor, or it holds neuron records (see neuron_rows).
        """
        dtype = self._entry(name).dtype
        if dtype == "uint8":
            raise ConfigError(f"{name} holds neuron records; ask for one part with neuron_rows")
        return np.array(to_float32(self.array(name), dtype), np.float32)

    def neuron_rows(self, layer: int, part: Literal["gate", "up", "down"]) -> NDArray[np.float32]:
        """A copy of one part of every neuron of a layer, rows_ND, in float32.

        Row i is neuron i's gate row (of a plain ReLU layer: its row of fc1), up row or down column.

        Raises:
            ConfigError: no such layer or part, or neurons of this model have none.
        """
        if part not in ROWS:
            raise ConfigError(f"a neuron has no part {part!r:.80}; choose gate, up or down")
        at = self.bundle.record.part(part)
        if at is None:
            raise ConfigError(f"a neuron of {self.bundle.name} has no {part} row; it has no gating")
        rows = self.array(f"layers.{layer}.neurons")[:, at.slice]
        return STORED[at.format].unpack(rows, self.bundle.spec.d_model)

    def neuron_biases(self, layer: int) -> NDArray[np.float32]:
        """A copy of what is added to each gate row's product, [N]; zeros where there is none."""
        records, at = self.array(f"layers.{layer}.neurons"), self.bundle.record.part("bias")
        if at is None:
            return np.zeros(len(records), np.float32)
        return np.array(records[:, at.slice]).view("<f4")[:, 0]

    def take(self, layer: int, ids: NDArray[np.int32]) -> None:
        """Add neurons to those of a private store; others have all of them. They stay until close.

        Raises:
            ConfigError: no such layer, or the store is closed.
        """
        if self._records is not None:
            at, given = (
                self._entry(f"layers.{layer}.neurons"),
                self.array(f"layers.{layer}.neurons"),
            )
            own = self._records.array()[at.offset : at.offset + at.size]
            own.reshape(given.shape)[ids] = given[ids]

    def close(self) -> None:
        """Let go of the memory; idempotent. Addresses handed out are invalid from here on."""
        closing, self._closing, self._bytes = self._closing, None, None
        records, self._records = self._records, None
        if records is not None:
            records.close()
        if closing is not None:
            with suppress(BufferError):  # arrays handed out look at it: it goes with the last
                closing.close()

    def __enter__(self) -> "WeightStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _extents(bundle: Bundle, own_ids: Sequence[NDArray[np.int32]]) -> list[tuple[int, int]]:
    """Parts of weights.bin that hold these neurons."""
    record_bytes = bundle.record.bytes
    starts = [
        bundle.tensors[f"layers.{layer}.neurons"].offset + ids.astype(np.int64) * record_bytes
        for layer, ids in enumerate(own_ids)
    ]
    return stores.private_blocks(bundle.weights_bytes, starts, record_bytes)
