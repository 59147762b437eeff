"""One-way latency between actors: by flags of the exchange in resident C loops, and by a Ray call.

Three actors with the engine's own options. Two or all three take part; the loops of the others wait
for a flag, as an engine's do. The driver is alive throughout.
"""

import os
import statistics
import time
from dataclasses import asdict
from typing import Any

import ray

from hotcold.actors.cluster import ray_cluster as cluster
from hotcold.runtime.bench.hop import (
    PARK,
    HopResult,
    HopSide,
    hop_layout,
    hop_side,
    ring,
    summarise,
)
from hotcold.runtime.exchange.segment import PoisonCode, Segment, SegmentHandle

CALLS = 300
PAYLOAD_BYTES = 14336  # x of a 13B model in fp16, as in the measurements this is compared with


class HopActor:
    """Plays one side of a measurement; not part of an engine."""

    @ray.method(concurrency_group="loop")
    def play(self, handle: SegmentHandle, side: HopSide) -> Any:
        """Run one side; the PING side returns round trips in ns."""
        return hop_side(handle, side)

    @ray.method(concurrency_group="control")
    def echo(self, data: bytes) -> bytes:
        """Return data, for the time of a Ray call."""
        return data


def measure(rounds: int) -> dict[str, Any]:
    """Hops between actors by case: pinned, unpinned, loaded (all three loops take turns); ray.

    The caller has joined a Ray cluster. Returns by case p50_us and p99_us, one way; pinned is None
    with fewer than two cores.
    """
    options: dict[str, Any] = {"max_restarts": 0, "concurrency_groups": {"loop": 1, "control": 1}}
    actors: list[Any] = [
        ray.remote(**options)(HopActor).options(num_cpus=0.25, **cluster.worker_options()).remote()
        for _ in range(3)
    ]
    try:
        ray.get([actor.echo.remote(b"") for actor in actors])
        cores = tuple(sorted(os.sched_getaffinity(0)))
        native = {
            "pinned": _native(actors, rounds, 2, cores[:2]) if len(cores) > 1 else None,
            "unpinned": _native(actors, rounds, 2, ()),
            "loaded": _native(actors, rounds, 3, ()),
        }
        return {
            "native": {
                case: None if result is None else asdict(result) for case, result in native.items()
            },
            "ray": _ray_call(actors[0]),
        }
    finally:
        for actor in actors:
            ray.kill(actor)


def _native(actors: list[Any], rounds: int, sides: int, cores: tuple[int, ...]) -> HopResult:
    with Segment.create(hop_layout(), epoch=1) as segment:
        parts = ring(sides, rounds, cores)
        parts += [HopSide(PARK, 3, 3, 0)] * (len(actors) - sides)
        calls = [
            actor.play.remote(segment.handle, part)
            for actor, part in reversed(list(zip(actors, parts, strict=True)))
        ]
        try:
            return summarise(ray.get(calls[-1]), sides, cores)
        finally:
            segment.poison(PoisonCode.CLOSED)
            ray.wait(calls, num_returns=len(calls), timeout=5)


def _ray_call(actor: Any) -> dict[str, float]:
    data, times = bytes(PAYLOAD_BYTES), []
    for _ in range(CALLS):
        begin = time.perf_counter()
        ray.get(actor.echo.remote(data))
        times.append((time.perf_counter() - begin) / 2 * 1e6)
    times = sorted(times[CALLS // 10 :])
    return {"p50_us": statistics.median(times), "p99_us": times[int(len(times) * 0.99)]}
