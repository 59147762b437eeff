"""What a segment shows of a running engine, read without stopping anything.

Counters and spans have one writer and are whole at any time. An active list is read only where the
layer's flag says that it is finished, and dropped where the next pass has begun to write it
meanwhile.
"""

from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import ACTIVE, GateList, active_ids
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.telemetry.message import MAX_IDS, MAX_SPANS, Active, LayerLoad
from hotcold.runtime.tracing.spans import read_array


class SegmentReader:
    """Reads one epoch's segment.

    `actors` are those whose counters are in it: all, or this process's own where memory is private.
    """

    def __init__(self, segment: Segment, deployment: Deployment, actors: tuple[str, ...]) -> None:
        self.actors = actors
        self._segment, self._deployment = segment, deployment
        self._next_span = dict.fromkeys(actors, 0)
        plan = deployment.computed_plan
        self.owned_LG = [
            tuple(int(np.count_nonzero(row == device)) for device in range(len(plan.devices)))
            for row in plan.device_LN
        ]
        # A GPU keeps its own list in its own memory.
        self._seen = [
            deployment.gpu is None or not member.on_gpu for member in deployment.topology.executors
        ]
        self._layer = 0

    def counters(self, actor: str) -> dict[str, int]:
        """An actor's counters, since this epoch began."""
        return asdict(self._segment.actor_state(actor))

    def spans(self, actor: str) -> tuple[NDArray[np.void], int]:
        """Steps since the last call, and how many more there were."""
        first = self._next_span[actor]
        spans, self._next_span[actor] = read_array(self._segment, actor, first)
        spans = spans[-MAX_SPANS:]
        return spans, self._next_span[actor] - first - len(spans)

    def layers(self) -> tuple[list[LayerLoad], list[Active]]:
        """The load of each layer, and the ids of as many layers as fit; the next call goes on."""
        loads, active, room = [], [], MAX_IDS
        n_layers = len(self.owned_LG)
        found = [self._lists(layer) for layer in range(n_layers)]
        for owned, (seq, rows, lists) in zip(self.owned_LG, found, strict=True):
            listed = tuple(None if ids is None else len(ids) for ids in lists)
            loads.append(LayerLoad(owned, listed, seq, rows))
        for layer in [(self._layer + step) % n_layers for step in range(n_layers)]:
            seq, _, lists = found[layer]
            room -= sum(len(ids) for ids in lists if ids is not None)
            if room < 0:
                break
            self._layer = (layer + 1) % n_layers
            if any(ids is not None for ids in lists):
                active.append(Active(layer, seq, self._is_exact(layer), lists))
        return loads, active

    def _is_exact(self, layer: int) -> bool:
        """Whether its lists hold the gates, and so exactly what fires; the same in every pass."""
        heads = (
            self._segment.view(offset, ACTIVE.itemsize).view(ACTIVE)[0]
            for offset in self._deployment.layout.layers[layer].active
        )
        return all(int(head["has_gate"]) == GateList.ALL for head in heads)

    def _lists(self, layer: int) -> tuple[int, int, tuple[NDArray[np.int32] | None, ...]]:
        """Pass, rows and active neurons by device; pass 0: nothing to be seen now."""
        layout, segment = self._deployment.layout, self._segment
        flag = layout.flag("active", layer)
        nothing: tuple[None, ...] = (None,) * len(self._seen)
        if not self._deployment.predicts:
            return 0, 0, nothing
        seq = int(segment.flags(layout.flags_offset, layout.n_flags)[flag])
        rows = 0
        lists: list[NDArray[np.int32] | None] = []
        for seen, offset in zip(self._seen, layout.layers[layer].active, strict=True):
            head = segment.view(offset, ACTIVE.itemsize).view(ACTIVE)[0]
            count = min(int(head["count"]), layout.n_neurons)
            ids = segment.view(offset + active_ids(), 4 * count).view(np.int32).copy()
            batch = int(head["batch"])
            if not seq or int(head["seq"]) != seq:  # the next pass has begun to write it
                return 0, 0, nothing
            rows = max(rows, batch)
            lists.append(ids if seen else None)
        return seq, rows, tuple(lists)
