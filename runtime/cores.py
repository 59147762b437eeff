"""Threads and cores of the three resident loops on this machine.

Explicit on purpose: Ray sets no affinity, and loops that wait for each other must not spin on the
same core without yielding (they yield, see native/exchange.c; this is about speed, not liveness).
"""

import os
from dataclasses import dataclass

ACTORS = ("gpu", "cpu", "predictor")


@dataclass(frozen=True)
class CoreShare:
    """Threads of one actor, the loop's own included; cores to pin them to, or None."""

    threads: int
    cores: tuple[int, ...] | None


def share_cores(threads: int | None, pin: bool | None, gpu: bool = False) -> dict[str, CoreShare]:
    """Split this process's cores over the actors.

    The executors work side by side only in the feed-forward part, and each phase before it is one
    actor's alone. Measured choices are in the table below.

    Args:
        threads: threads of each executor; None: half of the cores, at least one.
        pin: True pins every thread; None pins where every loop gets a core of its own.
        gpu: the GPU executor computes on a GPU and needs one thread, to launch and to watch; the
            CPU executor gets all cores but that one and one for the rest of the process.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = threads if threads is not None else max(1, len(cores) // 2)
    wanted = {"gpu": each, "cpu": each, "predictor": each}
    if gpu:
        most = threads if threads is not None else max(1, len(cores) - 2)
        wanted = {"gpu": 1, "cpu": most, "predictor": 1}
    pinned = pin if pin is not None else sum(wanted.values()) <= len(cores)
    shares, at = {}, 0
    for actor in ACTORS:
        own = tuple(cores[(at + i) % len(cores)] for i in range(wanted[actor]))
        shares[actor] = CoreShare(wanted[actor], own if pinned else None)
        at += wanted[actor]
    return shares
