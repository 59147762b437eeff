"""One-way latency of the exchange, between resident C loops in processes of their own.

A hop is one message in one direction: the time of a round trip divided by its messages.
`measure_hop` starts the processes itself; actors run `hop_side` on a segment of their driver
instead. Flags alone are measured, without payload and without Ray.
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import DRIVER, PoisonCode, Status
from hotcold.native.bindings import segment as native
from hotcold.native.errors import ConfigError, HotcoldError, KernelError
from hotcold.runtime.exchange.segment import (
    Segment,
    SegmentHandle,
    SegmentLayout,
)

PING, PONG, PARK = 0, 1, 2
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from hotcold.runtime.bench.hop import _child; _child(json.loads(sys.argv[2]))"
)


@dataclass(frozen=True)
class HopResult:
    """Time of one hop, in microseconds.

    `cores` are those the loops were pinned to; empty: not pinned.
    """

    p50_us: float
    p99_us: float
    rounds: int
    sides: int = 2
    cores: tuple[int, ...] = ()


@dataclass(frozen=True)
class HopSide:
    """One side's part: its role, the flag it sets, the flag it waits for, its core (-1: none)."""

    role: int
    flag_out: int
    flag_in: int
    rounds: int
    core: int = -1
    sides: int = 2


def hop_layout() -> SegmentLayout:
    """A segment just large enough for the bench: flags 0 to 3."""
    return SegmentLayout.build(1, 16, 16, 1, n_flags=4, span_capacity=1)


def ring(n: int, rounds: int, cores: tuple[int, ...] = ()) -> list[HopSide]:
    """The sides of a ring of n loops: side i sets flag i and waits for the flag before it."""
    pins = cores or (-1,) * n
    return [HopSide(PING if i == 0 else PONG, i, (i - 1) % n, rounds, pins[i], n) for i in range(n)]


def hop_side(handle: SegmentHandle, side: HopSide) -> NDArray[np.uint32]:
    """Run one side in the calling process until its rounds are done; round trips in ns, for PING.

    The segment is made from `hop_layout`, and the process that made it must be alive. A PARK side
    waits for a flag that never comes until the segment is poisoned.
    """
    with Segment.attach(handle) as segment:
        if side.role == PARK:
            status, _ = segment.native.wait(side.flag_in, 1, handle.epoch, -1)
            if status is not Status.ERR_POISONED:
                raise KernelError(f"hop: a parked wait ended with {status.name}")
            return np.zeros(0, dtype=np.uint32)
        return native.hop(
            *(segment.native, side.role, side.flag_out, side.flag_in, side.rounds),
            epoch=handle.epoch,
            core=side.core,
        )


def summarise(rtt_ns: NDArray[np.uint32], sides: int, cores: tuple[int, ...] = ()) -> HopResult:
    """Percentiles of one hop from round trips of a ring; the first tenth is warm-up."""
    hop_us = rtt_ns[len(rtt_ns) // 10 :].astype(np.float64) / sides / 1e3
    p50, p99 = (float(value) for value in np.percentile(hop_us, [50, 99]))
    return HopResult(p50, p99, len(rtt_ns), sides, cores)


def measure_hop(
    rounds: int = 20_000, pinned: bool = False, sides: int = 2, parked: int = 0
) -> HopResult:
    """Measure a hop between fresh processes of this machine.

    Two or three loops (`sides`) take turns; `parked` further processes wait on a flag that never
    comes, as an idle loop does.

    Raises:
        ConfigError: fewer cores than loops to pin, or a count out of range.
        KernelError: a side failed; its own message is in the text.
    """
    if rounds < 10 or sides not in (2, 3) or not 0 <= parked <= 8:
        raise ConfigError(
            f"hop: {rounds} rounds (at least 10), {sides} sides (2 or 3), {parked} parked (up to 8)"
        )
    available = sorted(os.sched_getaffinity(0))
    if pinned and len(available) < sides:
        raise ConfigError(
            f"hop: {sides} pinned loops need as many cores, this process may use "
            f"{len(available)}; measure unpinned"
        )
    cores = tuple(available[:sides]) if pinned else ()
    parts = [HopSide(PARK, 3, 3, 0)] * parked + list(reversed(ring(sides, rounds, cores)))
    with Segment.create(hop_layout(), epoch=1) as segment, ExitStack() as stack:
        children = [stack.enter_context(_start(segment.handle, part)) for part in parts]
        stack.callback(segment.poison, PoisonCode.CLOSED)  # at the end: no process keeps waiting
        text = _result(segment, children)
    return HopResult(**{**json.loads(text), "cores": cores})


def _start(handle: SegmentHandle, side: HopSide) -> "subprocess.Popen[str]":
    task = json.dumps({"handle": asdict(handle), "side": asdict(side)})
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), task]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _result(segment: Segment, children: list["subprocess.Popen[str]"]) -> str:
    """What the last child, the ping side, prints; ends everyone as soon as one child fails."""
    while children[-1].poll() is None:
        failed = [child for child in children if child.poll()]
        if failed:
            segment.poison(PoisonCode.FAILED)
        try:
            children[-1].wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    failed = [child for child in children if child.poll()]
    if failed:
        _, errors = failed[0].communicate()
        last = (errors.strip().splitlines() or [f"exit code {failed[0].returncode}"])[-1]
        raise KernelError(f"hop: a side failed: {last}")
    return children[-1].communicate()[0]


def _child(task: dict[str, dict[str, Any]]) -> None:
    handle, side = SegmentHandle(**task["handle"]), HopSide(**task["side"])
    with Segment.attach(handle) as segment, native.Watcher(segment.native, {handle.pid: DRIVER}):
        try:
            rtt_ns = hop_side(handle, side)
        except HotcoldError:
            segment.poison(PoisonCode.FAILED)
            raise
    if side.role == PING:
        print(json.dumps(asdict(summarise(rtt_ns, side.sides))))
