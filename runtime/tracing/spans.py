"""The span ring: what every actor's native loop did and when, read while it runs.

Each step of a program writes one span of 32 bytes into its actor's ring of the exchange segment and
then counts it; the ring holds `span_capacity`. Readers copy the ring and drop what the writer may
have overwritten meanwhile. Called by statistics and traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import SPAN
from hotcold.native.abi.names import OPS

if TYPE_CHECKING:  # reading needs no compiled code
    from hotcold.runtime.exchange.segment import Segment


@dataclass(frozen=True)
class Span:
    """One step of one actor; times on CLOCK_MONOTONIC, in nanoseconds.

    Attributes:
        actor: its label, such as "gpu".
        op: name of the operation, such as "attention" or "cold".
        layer: its layer; -1 where it has none.
        seq: number of the pass.
        begin_ns: the step began to wait for its flags.
        ready_ns: the flags had arrived.
        end_ns: the step was computed; its signal comes next.
    """

    actor: str
    op: str
    layer: int
    seq: int
    begin_ns: int
    ready_ns: int
    end_ns: int

    @property
    def wait_ns(self) -> int:
        """Time spent waiting for others."""
        return self.ready_ns - self.begin_ns

    @property
    def busy_ns(self) -> int:
        """Time spent on the operation itself."""
        return self.end_ns - self.ready_ns


def op_name(op: int) -> str:
    """Name of an operation number; "op 9" for one this version does not know."""
    return OPS[op] if 0 <= op < len(OPS) else f"op {op}"


def read_array(segment: Segment, actor: str, since: int = 0) -> tuple[NDArray[np.void], int]:
    """Copy the spans of an actor that the ring still holds, oldest first.

    `since` is the number of the first span wanted; pass the last call's second value to go on.
    Returns spans as an array of SPAN, and the number the next span will have.
    """
    native = segment.native
    index, capacity = segment.actors.index(actor), native.span_capacity
    count = segment.actor_state(actor).span_count
    ring = segment.view(native.span_offset[index], capacity * SPAN.itemsize).view(SPAN)
    first = max(0, since, count - capacity)
    spans = ring[np.arange(first, max(first, count)) % capacity]
    # The writer may be filling the slot after the last it counted, whose old content is then torn.
    written = segment.actor_state(actor).span_count
    lost = max(0, written - capacity + 1 - first)
    return spans[lost:], count


def read(segment: Segment, actor: str, since: int = 0) -> list[Span]:
    """The same as a list of Span."""
    return as_spans(actor, read_array(segment, actor, since)[0])


def as_spans(actor: str, spans: NDArray[np.void]) -> list[Span]:
    """Spans of an actor out of an array of SPAN."""
    counts = ("layer", "seq", "begin_ns", "ready_ns", "end_ns")
    return [
        Span(actor, op_name(int(row["op"])), **{name: int(row[name]) for name in counts})
        for row in spans
    ]
