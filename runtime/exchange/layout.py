"""The bytes of an exchange segment: where flags, spans and payloads lie.

    | header | flags, a cache line each | span rings, one an actor | owners, 2 tables |
    | per layer: x, an active list for each device, y of each but the leader's |

The engine builds one layout; the program compiler takes flags and offsets from it, the exchange
makes a segment of that size. Knows sizes, no memory.
"""

import mmap
from dataclasses import dataclass

from hotcold.native.abi.generated import (
    CACHE_LINE,
    FLAG,
    MAX_BATCH,
    OWNERS,
    SEGMENT,
    SPAN,
    active_bytes,
)
from hotcold.native.errors import ConfigError
from hotcold.runtime.topology import CLASSIC, Topology

KINDS: tuple[str, ...] = ("x", "active", "y")  # of flags; y: one for each device that hands over
SPARE_FLAGS = 4
LIMITS = {"n_layers": 4096, "d_model": 1 << 20, "n_neurons": 1 << 24, "max_batch": MAX_BATCH}
LIMITS |= {"n_flags": 1 << 20, "span_capacity": 1 << 24}


def align(offset: int, to: int = CACHE_LINE) -> int:
    """Round an offset up to a multiple of `to`."""
    return -(-offset // to) * to


@dataclass(frozen=True)
class LayerSlots:
    """Payload offsets of one layer, in bytes from the segment's start.

    Attributes:
        x: FFN input, [max_batch, D] float32; written by the leader.
        active: active list of each device; written by the predictor.
        y: by device, its share of the FFN's output, [max_batch, D] float32; -1: the leader's, which
            it keeps.
    """

    x: int
    active: tuple[int, ...]
    y: tuple[int, ...]


@dataclass(frozen=True)
class SegmentLayout:
    """Where everything lies in a segment; the same numbers in every process."""

    n_layers: int
    d_model: int
    n_neurons: int
    max_batch: int
    with_gate: bool
    with_residual: bool
    n_flags: int
    span_capacity: int
    flags_offset: int
    span_offsets: tuple[int, ...]
    owners_offset: int
    layers: tuple[LayerSlots, ...]
    bytes: int
    topology: Topology = CLASSIC

    @classmethod
    def build(
        cls,
        n_layers: int,
        d_model: int,
        n_neurons: int,
        max_batch: int,
        *,
        with_gate: bool = False,
        with_residual: bool = False,
        n_flags: int | None = None,
        span_capacity: int = 8192,
        topology: Topology = CLASSIC,
    ) -> "SegmentLayout":
        """Lay out a segment; ConfigError: a count out of LIMITS.

        with_gate: active lists carry gate pre-activations. with_residual: the residual stream
        follows x in its slot, at max_batch rows. n_flags None: those of the layers and a few spare
        ones. span_capacity: spans each actor's ring keeps.
        """
        devices, actors = len(topology.devices), len(topology.actors)
        flags = _flags_a_layer(topology) * n_layers + SPARE_FLAGS if n_flags is None else n_flags
        sizes = {"n_layers": n_layers, "d_model": d_model, "n_neurons": n_neurons}
        sizes |= {"max_batch": max_batch, "n_flags": flags, "span_capacity": span_capacity}
        for name, limit in LIMITS.items():
            if not 1 <= sizes[name] <= limit:
                raise ConfigError(f"segment: {name} {sizes[name]} is not between 1 and {limit}")
        flags_offset = align(SEGMENT.itemsize)
        spans = align(flags_offset + flags * FLAG.itemsize)
        ring = align(span_capacity * SPAN.itemsize)
        span_offsets = tuple(spans + actor * ring for actor in range(actors))
        owners = spans + actors * ring
        first = align(owners + align(OWNERS.itemsize) + 2 * align(n_layers * n_neurons))
        first = align(first, mmap.PAGESIZE)
        rows = align(4 * max_batch * d_model)
        x_rows = align(4 * max_batch * d_model * (2 if with_residual else 1))
        lists = active_bytes(n_neurons, max_batch if with_gate else 0)
        stride = x_rows + devices * lists + (devices - 1) * rows
        layers = tuple(
            LayerSlots(
                x=start,
                active=tuple(start + x_rows + device * lists for device in range(devices)),
                y=(-1, *range(start + x_rows + devices * lists, start + stride, rows)),
            )
            for start in range(first, first + n_layers * stride, stride)
        )
        total = align(first + n_layers * stride, mmap.PAGESIZE)
        return cls(
            **sizes,
            with_gate=with_gate,
            with_residual=with_residual,
            flags_offset=flags_offset,
            span_offsets=span_offsets,
            owners_offset=owners,
            layers=layers,
            bytes=total,
            topology=topology,
        )

    @property
    def active_bytes(self) -> int:
        """Bytes of one active list."""
        return active_bytes(self.n_neurons, self.max_batch if self.with_gate else 0)

    def owner_table(self, index: int) -> int:
        """Offset of one of the two tables of owners, int8 [L, N] (abi/moves.h)."""
        first = self.owners_offset + align(OWNERS.itemsize)
        return first + index * align(self.n_layers * self.n_neurons)

    def flag(self, kind: str, layer: int, device: int = 1) -> int:
        """Index of a layer's flag: "x" and "y" payload ready, "active" lists ready.

        device: whose y.
        """
        if kind not in KINDS or not 0 <= layer < self.n_layers:
            raise ConfigError(
                f"segment: no flag {kind!r} of layer {layer}, layers: {self.n_layers}"
            )
        more = device - 1 if kind == KINDS[-1] else 0
        return _flags_a_layer(self.topology) * layer + KINDS.index(kind) + more

    def spare_flag(self, index: int) -> int:
        """Index of a flag that belongs to no layer."""
        flag = _flags_a_layer(self.topology) * self.n_layers + index
        if index < 0 or flag >= self.n_flags:
            raise ConfigError(f"segment: no spare flag {index}, flags: {self.n_flags}")
        return flag


def _flags_a_layer(topology: Topology) -> int:
    return len(KINDS) - 1 + len(topology.devices) - 1
