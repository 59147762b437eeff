"""Threads and cores of the resident loops on this machine.

Set explicitly, because Ray sets no affinity and loops that wait for each other should not share a
core (they do yield, see native/exchange/exchange.c, so this is about speed, not liveness).

Under a CPU quota as many threads run as it grants. They are not pinned, since others use the same
cores, and sleep instead of spinning where together they could use up the quota by waiting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotcold.native.abi.generated import Role
from hotcold.runtime.limits import ROOT, Processors
from hotcold.runtime.topology import CLASSIC, Member, Topology


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
    topology: Topology = CLASSIC,
    root: Path = ROOT,
) -> dict[str, Cores]:
    """Split cores over the actors.

    On the CPU device each phase but the feed-forward one is a single actor's, so each may use all
    cores: whoever waits yields. Measured on two cores, one thread each against two each: 55.1 and
    33.4 ms a token (planted llama-1b), 1.31 and 1.04 ms (embedded model). They are pinned then,
    because two threads of an actor must not share a core while another core is idle.

    Several CPU executors compute at the same time, so each gets a part of the cores, whole NUMA
    nodes where there are as many; so do the GPU executors behind the first, on their CPU device.

    Args:
        threads: threads of each actor; None: all cores, or what the quota grants.
        pin: True pins every thread; None pins where an actor has all cores or a thread its own.
        here: the cores, and their quota.
        gpu: the GPU executor computes on a GPU and needs one thread, to launch and to watch; the
            CPU executor gets all cores but that one and one for the rest of the process.
        own: threads of some actors, by a schedule.
        topology: the actors.
        root: where /sys is, for tests.
    """
    cores, count = here.cores, here.at_once
    most = max(1, count - 2) if gpu else count
    parts = _parts(cores, topology, root)
    wanted = {}
    for member in topology.members:
        shared = max(1, most // len(_peers(member, topology)))
        wanted[member.actor] = threads if threads is not None else shared
        if gpu and member.role is not Role.WORKER:
            wanted[member.actor] = 1
    wanted |= own or {}
    fits = threads is None and not gpu and not own or sum(wanted.values()) <= len(cores)
    pinned = fits and here.quota is None if pin is None else pin
    shares, at = {}, 0
    for actor in topology.actors:
        some, first = (parts[actor], 0) if actor in parts else (cores, at)
        taken = tuple(some[(first + i) % len(some)] for i in range(wanted[actor]))
        shares[actor] = Cores(wanted[actor], taken if pinned else None)
        at += wanted[actor]
    return shares


def _peers(member: Member, topology: Topology) -> list[Member]:
    """Those that compute neurons at the same time on the same cores, itself included."""
    if member.role is not Role.WORKER:
        return [member]
    workers = [other for other in topology.members if other.role is Role.WORKER]
    return [other for other in workers if other.on_gpu == member.on_gpu]


def _parts(cores: Sequence[int], topology: Topology, root: Path) -> dict[str, tuple[int, ...]]:
    """The cores of each actor that has peers: equal parts, along the NUMA nodes."""
    made = {}
    for member in topology.members:
        peers = _peers(member, topology)
        if len(peers) > 1:
            at, ordered = peers.index(member), by_node(cores, root)
            begin, end = (len(ordered) * i // len(peers) for i in (at, at + 1))
            made[member.actor] = ordered[begin:end] or (ordered[at % len(ordered)],)
    return made


def by_node(cores: Sequence[int], root: Path = ROOT) -> tuple[int, ...]:
    """Cores in the order of their NUMA nodes; those of no known node come last."""
    node_of: dict[int, int] = {}
    for path in (root / "sys/devices/system/node").glob("node[0-9]*/cpulist"):
        for span in path.read_text().strip().split(","):
            first, _, last = span.partition("-")
            if first.isdecimal():
                number = int(path.parent.name.removeprefix("node"))
                node_of |= dict.fromkeys(range(int(first), int(last or first) + 1), number)
    return tuple(sorted(cores, key=lambda core: (node_of.get(core, len(cores)), core)))


def may_spin(shares: Mapping[str, Cores], here: Processors) -> bool:
    """Whether threads that wait may spin: not where that takes from the quota what others need."""
    return here.quota is None or sum(share.threads for share in shares.values()) <= here.quota
