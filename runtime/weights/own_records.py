"""Own records: a device's neurons in another format than the model's, made at a launch.

Where a plan says so (Plan.dtype_LN), the executor quantises the neurons it owns out of the weight
store, in the bytes that `hotcold convert` would give them, into private huge pages indexed by
neuron id. As in a private store, only the 2 MiB blocks that hold a neuron of its own take memory.
The store's records stay: predictors that evaluate gates read those, and the gates they send along
are used as they are; a dense prompt on a GPU streams the host's neurons from them.
"""

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


class OwnRecords:
    """Records of some layers' neurons in formats of their own.

    Args:
        formats_L: by layer the format; None: the model's, nothing is made.
        ids_L: by layer the neurons.

    Raises:
        BudgetError: not enough memory; nothing was made.
        ConfigError: a weight that the format cannot hold.
    """

    def __init__(
        self, store: WeightStore, formats_L: Sequence[str | None], ids_L: Sequence[Ids]
    ) -> None:
        spec, self._store = store.bundle.spec, store
        self._made = {
            layer: NeuronRecord.for_spec(spec.stored(kind))
            for layer, kind in enumerate(formats_L)
            if kind is not None and len(ids_L[layer])
        }
        sizes = [spec.n_neurons * record.bytes for record in self._made.values()]
        starts = np.cumsum([0, *sizes])
        self._start = dict(zip(self._made, starts.tolist(), strict=False))
        if not self._made:
            self._pages = None
            return
        extents = [
            extent
            for layer, record in self._made.items()
            for extent in stores.private_blocks(
                int(starts[-1]),
                [self._start[layer] + ids_L[layer].astype(np.int64) * record.bytes],
                record.bytes,
            )
        ]
        what = f"the neurons of {store.bundle.name} in a format of their own"
        self._pages = stores.private_pages(int(starts[-1]), extents, what, WAY_OUT)
        try:
            for begin, end in extents:
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

    def _write(self, layer: int, ids: Ids) -> int:
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
        self.array(layer)[ids] = out
        return out.nbytes

    def array(self, layer: int) -> NDArray[np.uint8]:
        """A layer's records by neuron id, [N, bytes]; those of other neurons are not there."""
        assert self._pages is not None
        size = self._store.bundle.spec.n_neurons * self._made[layer].bytes
        begin = self._start[layer]
        return self._pages.array()[begin : begin + size].reshape(-1, self._made[layer].bytes)

    def fields(self, layer: int) -> dict[str, Any]:
        """Of hc_owned (abi/hotcold.h): where they lie, until close(); nothing where none are."""
        if layer not in self._made or self._pages is None:
            return {}
        address = self._pages.address + self._start[layer]
        return {"records": address, "record": self._made[layer].fields()}

    def close(self) -> None:
        """Free them; idempotent. The native side must not read them any more."""
        pages, self._pages = self._pages, None
        if pages is not None:
            pages.close()
