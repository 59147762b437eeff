"""What the processes of an engine hold of the machine, counted by kind, to find leaks.

Read from /proc and the NVIDIA driver: what is there, not what the engine believes.
Called by `hotcold chaos` and by the tests, before and after. Counts the actors below this process
(those of a Ray that it started), what this process holds, and files by our names. Ray's own
processes, logs and connections inside its workers are not counted.
"""

import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hotcold.actors.cluster.processes import commands, parents, read_text
from hotcold.native.gpu import nvml

ACTORS = ("ray::GpuExecutor", "ray::CpuExecutor", "ray::Predictor", "ray::HopActor")
# The last is the guard.
DAEMONS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "hotcold.native.gpu.mps")
OURS = "hotcold"
GPU = "GPU memory, MiB"
GPU_SLACK_MIB = 16  # what the driver keeps or gives back by itself
WAIT_S = 10.0
_SOCKETS = {"tcp": "tcp", "tcp6": "tcp", "udp": "udp", "udp6": "udp", "unix": "unix"}
_LISTEN = "0A"
_NOT_OURS = ("/dev/", "/proc/", "/sys/", "/memfd:")  # and Ray's logs, in its session folder


def take(gpu: bool = True) -> Counter[str]:
    """What there is now, by kind, empty ones left out; `gpu`: with its memory, all processes'."""
    here = os.getpid()
    found = Counter(f"thread {t.name}" for t in threading.enumerate() if t.name.startswith(OURS))
    for pid in [here, *descendants(here)]:
        command = read_text(f"/proc/{pid}/cmdline")
        actor = next((name for name in ACTORS if command.startswith(name)), "")
        daemon = next((name for name in DAEMONS if f"{name}\0" in command), "")
        if actor or daemon:
            found[f"process {actor or daemon}"] += 1
        if actor or pid == here:
            found.update(f"{what} of {actor or 'this process'}" for what in _held(pid))
    found.update(f"socket of this process, {kind}" for kind in _sockets(here))
    found.update(f"file {path}" for path in _files())
    used = nvml.used_bytes() if gpu else None
    if used is not None:
        found[GPU] = used >> 20
    return found


def growth(
    before: Counter[str], now: Counter[str], slack_mib: int = GPU_SLACK_MIB
) -> dict[str, int]:
    """What there is more of than before, apart from what a GPU's driver may keep."""
    more = now - before
    if more[GPU] <= slack_mib:
        del more[GPU]
    return dict(more)


def settled(
    before: Counter[str],
    wait_s: float = WAIT_S,
    look: Callable[[], Counter[str]] = take,
    slack_mib: int = GPU_SLACK_MIB,
) -> dict[str, int]:
    """What there still is more of than `before`, after giving processes time to end."""
    deadline = time.monotonic() + wait_s
    while (left := growth(before, look(), slack_mib)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def descendants(of: int) -> set[int]:
    """Living processes below one, zombies left out."""
    above, found = parents(), {of}
    while more := {pid for pid, parent in above.items() if parent in found} - found:
        found |= more
    return found - {of}


def _held(pid: int) -> Iterator[str]:
    """Our memory without a name, open or mapped; descriptors of processes, events and files."""
    for link in links(pid):
        path = link.partition(" ")[0]
        event = link == "anon_inode:[eventfd]" and pid == os.getpid()  # CUDA makes its own
        if path.startswith(f"/memfd:{OURS}") or link == "anon_inode:[pidfd]" or event:
            yield f"descriptor {path}"
        elif path.startswith("/") and not path.startswith(_NOT_OURS) and "/session_" not in path:
            yield f"descriptor {path}"
    for line in read_text(f"/proc/{pid}/maps").splitlines():
        if match := re.search(rf"memfd:{OURS}\S*", line):
            yield f"mapping {match[0]}"


def links(pid: int) -> Iterator[str]:
    """What the descriptors of a process point to; none where it is gone."""
    folder = f"/proc/{pid}/fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(f"{folder}/{name}")
        except OSError:
            continue


def _sockets(pid: int) -> Iterator[str]:
    """Family of every socket of a process and whether it listens; not those to Ray's processes.

    Ray opens such connections when it first needs them and keeps them to the end of either side.
    """
    rows = _socket_rows()
    programs = {pid: words[0] for pid, words in commands().items()}
    ends = ("/raylet", "/gcs_server")
    rays = [pid for pid, it in programs.items() if it.endswith(ends) or it.startswith("ray::")]
    mine, servers = _inodes([pid]), _inodes(rays)
    ports = {row.local for row in rows if row.inode in servers}
    for row in rows:
        if row.inode in mine and not (row.family == "tcp" and row.remote in ports):
            yield row.family + (" listening" if row.listens else "")


class _Row(NamedTuple):
    """A socket of this network namespace."""

    family: str
    inode: str
    local: str = ""
    remote: str = ""
    listens: bool = False


def _socket_rows() -> list[_Row]:
    rows = []
    for table, family in _SOCKETS.items():
        for line in read_text(f"/proc/self/net/{table}").splitlines()[1:]:
            fields = line.split()
            if family == "unix":
                rows.append(_Row(family, fields[6]))
            else:
                local, remote = (address.rpartition(":")[2] for address in fields[1:3])
                rows.append(_Row(family, fields[9], local, remote, fields[3] == _LISTEN))
    return rows


def _inodes(pids: Iterable[int]) -> set[str]:
    """Of all sockets of these processes."""
    found = (link for pid in pids for link in links(pid))
    return {link[8:-1] for link in found if link.startswith("socket:[")}


def _files() -> Iterator[str]:
    for folder in {"/dev/shm", tempfile.gettempdir()}:
        for path in Path(folder).glob(f"*{OURS}*"):
            yield str(path)
