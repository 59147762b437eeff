"""Time of a token by phase, from the span rings: attention, predictor, hot, cold, wait, merge.

The same on the CPU device and on a GPU, whose stamps become spans on the host's clock
(native/cuda/executor/timeline.cu). Called by the GPU executor's actor for `Engine.stats()`, by
benches and tests. Time that lanes spend at once is counted in each of them: the phases of the GPU
executor and its waits add up to a pass; `cold` and a predictor of its own run at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import Op
from hotcold.native.abi.names import words
from hotcold.runtime.tracing.spans import read_array

if TYPE_CHECKING:  # reading needs no compiled code
    from hotcold.runtime.exchange.segment import Segment

PASSES = 32  # of the newest, at most


def phase_times(segment: Segment, passes: int = PASSES) -> dict[str, float]:
    """Seconds a pass by phase: means over the newest whole passes that the rings still hold.

    Returns `embed`, `attention`, `predict`, `hot`, `merge` and `head` as computed, `wait` of the
    first GPU executor for others, `cold` of the CPU executors, and `pass`, first step to last; a
    phase that no ring has a step of is left out, and everything before the second pass is over.
    """
    rings = {actor: read_array(segment, actor)[0] for actor in segment.actors}
    leader = rings[segment.actors[0]]
    heads = leader[leader["op"] == Op.HEAD]
    oldest = max((int(ring["seq"][0]) for ring in rings.values() if len(ring)), default=0)
    # the oldest pass in a ring may have lost its first steps
    whole = heads["seq"][heads["seq"] > oldest][-passes:]
    if not len(whole):
        return {}
    found: dict[str, float] = {}
    for ring in rings.values():
        spans = ring[np.isin(ring["seq"], whole)]
        for name, op in words(Op).items():
            own = spans[spans["op"] == op]
            if len(own):
                found[name] = found.get(name, 0.0) + _sum_s(own, "ready_ns", "end_ns")
    led = leader[np.isin(leader["seq"], whole)]
    found["wait"] = _sum_s(led, "begin_ns", "ready_ns")
    found["pass"] = sum(_length_s(led[led["seq"] == seq]) for seq in whole)
    return {name: seconds / len(whole) for name, seconds in found.items()}


def _sum_s(spans: NDArray[np.void], begin: str, end: str) -> float:
    return int((spans[end].astype(np.int64) - spans[begin].astype(np.int64)).sum()) / 1e9


def _length_s(spans: NDArray[np.void]) -> float:
    return (int(spans["end_ns"].max()) - int(spans["begin_ns"].min())) / 1e9


def pass_lengths(segment: Segment, since_ns: int = 0) -> NDArray[np.float64]:
    """Seconds of each whole pass on the GPU executor that its ring holds, oldest first.

    Only passes that began at `since_ns` of the host's clock or later.
    """
    spans, _ = read_array(segment, segment.actors[0])
    begun, ended = (spans[spans["op"] == op] for op in (Op.EMBED, Op.HEAD))
    begin_by_seq = {int(span["seq"]): int(span["begin_ns"]) for span in begun}
    lengths = [
        int(span["end_ns"]) - begin_by_seq[int(span["seq"])]
        for span in ended
        if begin_by_seq.get(int(span["seq"]), -1) >= since_ns
    ]
    return np.array(lengths, np.float64) / 1e9
