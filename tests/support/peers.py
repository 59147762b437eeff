"""Processes on the other side of an exchange segment, for tests; each ends with this process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from hotcold.native.bindings.segment import Watcher
from hotcold.native.errors import HotcoldError
from hotcold.runtime.exchange.segment import DRIVER, Segment, SegmentHandle, SegmentLayout

LAYOUT = SegmentLayout.build(2, 16, 32, 2)
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from support import peers; getattr(peers, sys.argv[2])(**json.loads(sys.argv[3]))"
)


@contextmanager
def peer(function: str, **arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs one of the functions below; killed on the way out."""
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), function, json.dumps(arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def plain(segment: Segment) -> dict[str, int]:
    return asdict(segment.handle)


def line(process: "subprocess.Popen[str]") -> str:
    """The next line a peer prints; its error text if it prints none."""
    assert process.stdout is not None and process.stderr is not None
    text = process.stdout.readline().strip()
    return text or process.stderr.read()


def until_asleep(segment: Segment, flag: int) -> None:
    while segment.native.sleepers(flag) == 0:
        time.sleep(0.001)


# -- what peers do -------------------------------------------------------------------------------
def relay(handle: dict[str, int], side: int, sides: int, count: int) -> None:
    """Hand numbers round a ring: check and pass on payload and flag, dawdling at random."""
    rng = random.Random(side)
    with Segment.attach(SegmentHandle(**handle)) as segment:
        before = (side - 1) % sides
        mine = segment.floats(LAYOUT.layers[0].x + side * 64, 1, 16)
        theirs = segment.floats(LAYOUT.layers[0].x + before * 64, 1, 16)
        with Watcher(segment.native, {handle["pid"]: DRIVER}):
            for seq in range(1, count + 1):
                if side != 0:
                    assert segment.wait(before, seq, timeout_s=30)
                    assert np.all(theirs == seq), (seq, theirs)
                if rng.random() < 0.04:
                    time.sleep(rng.random() * 4e-4)
                mine[:] = seq
                segment.signal(side, seq)
                if side == 0:
                    assert segment.wait(before, seq, timeout_s=30)
                    assert np.all(theirs == seq), (seq, theirs)
        del mine, theirs
    print("done")


def park(handle: dict[str, int], flag: int) -> None:
    """Wait for a flag that never comes; print what ended the wait."""
    with Segment.attach(SegmentHandle(**handle)) as segment:
        print("ready", flush=True)
        try:
            segment.wait(flag, 1)
        except HotcoldError as error:
            print(f"{type(error).__name__}: {error}", flush=True)


def watch_and_park(handle: dict[str, int], flag: int, victim: int) -> None:
    """The same with a watcher of its own on another peer, the "cpu" actor."""
    with Segment.attach(SegmentHandle(**handle)) as segment, segment.watch({victim: "cpu"}):
        print("ready", flush=True)
        try:
            segment.wait(flag, 1)
        except HotcoldError as error:
            print(f"{time.monotonic_ns()} {type(error).__name__}: {error}", flush=True)


def own() -> None:
    """Make a segment, print its handle, and hold it."""
    segment = Segment.create(LAYOUT, epoch=3)
    segment.signal(0, 41)
    print(json.dumps(plain(segment)), flush=True)
    signal.pause()


def idle() -> None:
    print(os.getpid(), flush=True)
    signal.pause()
