"""Own records: a device's neurons in another format than the model's, made at a launch.

Where a plan says so (Plan.dtype_LN), the executor quantises the neurons it owns out of the weight
store, in the bytes that `hotcold convert` would give them, into private huge pages. They lie in
slots, side by side, the free ones in a list: a neuron that comes is converted into the lowest free
slot, one that has gone leaves its own. Beside a GPU, where neurons stay, they are indexed by neuron
id, and as in a private store only the 2 MiB blocks that hold a neuron take memory. The store's
records stay: predictors that evaluate gates read those, and the gates they send along are used as
they are; a dense prompt on a GPU streams the host's neurons from them.
"""

import heapq
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.limits import processors
from hotcold.runtime.model.checkpoints.convert import Progress
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES
from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.weights import stores
from hotcold.runtime.weights.weights import WeightStore

Ids = NDArray[np.int32]
BLOCK_BYTES = 2 << 20  # of records quantised in one go: larger ones fall out of the caches
WAY_OUT = "have the placement leave neurons in the model's format (dtype_LN), or free memory"


class Slots:
    """Which records of a table are in use; takes the lowest that are free."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._left: list[int] = []  # free ones below the first that was never used, a heap
        self._fresh = 0

    @property
    def free(self) -> int:
        """Slots that nothing lies in."""
        return len(self._left) + self.capacity - self._fresh

    def take(self, count: int) -> Ids:
        """So many free slots, ascending; there must be as many."""
        assert count <= self.free
        again = [heapq.heappop(self._left) for _ in range(min(count, len(self._left)))]
        begin, self._fresh = self._fresh, self._fresh + count - len(again)
        return np.array([*again, *range(begin, self._fresh)], np.int32)

    def give_back(self, slots: Ids) -> None:
        """Free them."""
        for slot in slots.tolist():
            heapq.heappush(self._left, slot)


class OwnRecords:
    """Records of some layers' neurons in formats of their own.

    Args:
        formats_L: by layer the format; None: the model's, nothing is made.
        ids_L: by layer the neurons.
        spare_bytes: what further neurons may take; None: neurons stay, and lie by their ids.

    Raises:
        BudgetError: not enough memory; nothing was made.
        ConfigError: a weight that the format cannot hold.
    """

    def __init__(
        self,
        store: WeightStore,
        formats_L: Sequence[str | None],
        ids_L: Sequence[Ids],
        spare_bytes: int | None = None,
    ) -> None:
        spec, self._store = store.bundle.spec, store
        self._made = {
            layer: NeuronRecord.for_spec(spec.stored(kind))
            for layer, kind in enumerate(formats_L)
            if kind is not None and len(ids_L[layer])
        }
        self._pages = None
        if not self._made:
            return
        self._moves = spare_bytes is not None
        # A table a layer where neurons stay, else one for each size of record.
        self._table = {
            layer: record.bytes if self._moves else layer for layer, record in self._made.items()
        }
        self._slots: dict[int, Slots] = {}
        self._start: dict[int, int] = {}
        nbytes = 0
        for layer, table in self._table.items():
            if table in self._slots:
                continue
            alike = [other for other, key in self._table.items() if key == table]
            most, size = len(alike) * spec.n_neurons, self._made[layer].bytes
            used = sum(len(ids_L[other]) for other in alike)
            spare = most if spare_bytes is None else spare_bytes // size
            self._slots[table] = Slots(min(most, used + spare))
            self._start[table] = nbytes
            nbytes += self._slots[table].capacity * size
        self._slot_N = {
            layer: np.full(spec.n_neurons, -1, np.int32)
            if self._moves
            else np.arange(spec.n_neurons, dtype=np.int32)
            for layer in self._made
        }
        for layer, slot_N in self._slot_N.items():
            if self._moves:
                slot_N[ids_L[layer]] = self._slots[self._table[layer]].take(len(ids_L[layer]))
        extents = [
            extent
            for layer, record in self._made.items()
            for extent in stores.private_blocks(
                nbytes,
                [
                    self._start[self._table[layer]]
                    + self._slot_N[layer][ids_L[layer]].astype(np.int64) * record.bytes
                ],
                record.bytes,
            )
        ]
        what = f"the neurons of {store.bundle.name} in a format of their own"
        self._pages = stores.private_pages(nbytes, extents, what, WAY_OUT)
        try:
            for begin, end in dict.fromkeys(extents):
                stores.make_huge(self._pages, begin, end)
            self._fill(ids_L)
        except BaseException:
            self.close()
            raise

    def _fill(self, ids_L: Sequence[Ids]) -> None:
        blocks = []
        for layer, record in self._made.items():
            at_once = max(1, BLOCK_BYTES // record.bytes)
            cuts = [*range(0, len(ids_L[layer]), at_once), len(ids_L[layer])]
            blocks += [(layer, ids_L[layer][begin:end]) for begin, end in pairwise(cuts)]
        total = sum(len(ids) * self._made[layer].bytes for layer, ids in blocks)
        progress, done = Progress(f"quantising neurons of {self._store.bundle.name}"), 0
        with ThreadPoolExecutor(min(8, processors().at_once)) as threads:
            for size in threads.map(lambda block: self._write(*block), blocks):
                done += size
                progress(done, total)

    def _write(self, layer: int, ids: Ids, slots: Ids | None = None) -> int:
        bundle, to = self._store.bundle, self._made[layer]
        given = self._store.array(f"layers.{layer}.neurons")[ids]
        out = np.zeros((len(ids), to.bytes), np.uint8)
        for part in to.parts:
            at = bundle.record.part(part.name)
            assert at is not None
            rows = np.ascontiguousarray(given[:, at.slice]).view(RAW_TYPES[at.format])
            try:
                out[:, part.slice] = STORED[part.format].pack(rows, at.format)
            except OverflowError as error:
                raise ConfigError(
                    f"{part.name} rows of layer {layer} of {bundle.name}: {error}; have the "
                    f"placement leave this layer's neurons in {at.format} (dtype_LN)"
                ) from error
        self.array(layer)[self._slot_N[layer][ids] if slots is None else slots] = out
        return out.nbytes

    def has(self, layer: int) -> bool:
        """Whether that layer's neurons have a format of their own here."""
        return layer in self._made

    def take(self, layer: int, ids: Ids) -> int:
        """Convert neurons that come into free slots: the first of them, as many as there are slots.

        Returns how many; nothing has changed after an error.

        Raises:
            ConfigError: a weight that the format cannot hold.
        """
        slots = self._slots[self._table[layer]]
        ids = ids[: slots.free]
        if not len(ids):
            return 0
        taken = slots.take(len(ids))
        try:
            self._write(layer, ids, taken)
        except BaseException:
            slots.give_back(taken)
            raise
        self._slot_N[layer][ids] = taken  # read by the loop once the neurons are owned, not before
        return len(ids)

    def drop(self, layer: int, ids: Ids) -> None:
        """Free the slots of neurons that have gone, which the loop reads no more."""
        slot_N = self._slot_N[layer]
        self._slots[self._table[layer]].give_back(slot_N[ids])
        slot_N[ids] = -1

    def free(self, layer: int) -> int:
        """Slots that further neurons of a layer may come to."""
        return self._slots[self._table[layer]].free

    def slots(self, layer: int) -> Ids:
        """Where each neuron of a layer lies, [N]; -1: not here."""
        return np.array(self._slot_N[layer])

    def array(self, layer: int) -> NDArray[np.uint8]:
        """The records of a layer's table, [slots, bytes]; by neuron id where neurons stay."""
        assert self._pages is not None
        table, size = self._table[layer], self._made[layer].bytes
        begin, count = self._start[table], self._slots[table].capacity
        return self._pages.array()[begin : begin + count * size].reshape(-1, size)

    def fields(self, layer: int) -> dict[str, Any]:
        """Of hc_owned (abi/hotcold.h): where they lie, until close(); nothing where none are."""
        if layer not in self._made or self._pages is None:
            return {}
        address = self._pages.address + self._start[self._table[layer]]
        found = {"records": address, "record": self._made[layer].fields()}
        return found | ({"slot_N": self._slot_N[layer]} if self._moves else {})

    def close(self) -> None:
        """Free them; idempotent. The native side must not read them any more."""
        pages, self._pages = self._pages, None
        if pages is not None:
            pages.close()
