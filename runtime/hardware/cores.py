"""Threads and cores of the three resident loops on this machine.

Set explicitly, because Ray sets no affinity and loops that wait for each other should not share a
core (they do yield, see native/exchange/exchange.c, so this is about speed, not liveness).

Under a CPU quota as many threads run as it grants. They are not pinned, since others use the same
cores, and sleep instead of spinning where together they could use up the quota by waiting.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotcold.native.abi.names import ACTORS
from hotcold.runtime.limits import Processors


@dataclass(frozen=True)
class Cores:
    """Threads of one actor, the loop's own included; cores to pin them to, or None."""

    threads: int
    cores: tuple[int, ...] | None


def divide_cores(
    threads: int | None,
    pin: bool | None,
    here: Processors,
    gpu: bool = False,
    own: Mapping[str, int] | None = None,
) -> dict[str, Cores]:
    """Split cores over the actors.

    On the CPU device each phase but the feed-forward one is a single actor's, so each may use all
    cores: whoever waits yields. Measured on two cores, one thread each against two each: 55.1 and
    33.4 ms a token (planted llama-1b), 1.31 and 1.04 ms (embedded model). They are pinned then,
    because two threads of an actor must not share a core while another core is idle.

    Args:
        threads: threads of each actor; None: all cores, or what the quota grants.
        pin: True pins every thread; None pins where an actor has all cores or a thread its own.
        here: the cores, and their quota.
        gpu: the GPU executor computes on a GPU and needs one thread, to launch and to watch; the
            CPU executor gets all cores but that one and one for the rest of the process.
        own: threads of some actors, by a schedule.
    """
    cores, count = here.cores, here.at_once
    each = threads if threads is not None else count
    wanted = dict.fromkeys(ACTORS, each)
    if gpu:
        most = threads if threads is not None else max(1, count - 2)
        wanted = {"gpu": 1, "cpu": most, "predictor": 1}
    wanted |= own or {}
    fits = threads is None and not gpu and not own or sum(wanted.values()) <= len(cores)
    pinned = fits and here.quota is None if pin is None else pin
    shares, at = {}, 0
    for actor in ACTORS:
        taken = tuple(cores[(at + i) % len(cores)] for i in range(wanted[actor]))
        shares[actor] = Cores(wanted[actor], taken if pinned else None)
        at += wanted[actor]
    return shares


def may_spin(shares: Mapping[str, Cores], here: Processors) -> bool:
    """Whether threads that wait may spin: not where that takes from the quota what others need."""
    return here.quota is None or sum(share.threads for share in shares.values()) <= here.quota
