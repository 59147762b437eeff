"""The check that a test left nothing behind, for every test that starts actors.

What is counted is `hotcold.actors.cluster.footprint`: processes of actors, threads, unnamed memory
(open or mapped), descriptors, sockets, files in /dev/shm and the temp folder, GPU memory. Added
here is what a test run can say and an engine cannot: any other process that this run started, found
by the cache folder in its environment even where its parent is gone. While the run keeps one Ray
for all its tests, Ray's own processes, which come and go, are left out.
"""

import os
import sys
from collections import Counter
from pathlib import Path

from hotcold.actors.cluster import footprint, processes

WAIT_S = 10.0
CONTEXT = "CUDA context of this process"


def left_behind() -> Counter[str]:
    """Everything of ours that exists now, by kind."""
    ray_is_up = _ray_is_up()
    found = footprint.take()
    for name in [name for name in found if name.startswith("file ") and _is_pytests(name)]:
        del found[name]
    if any("nvidia-uvm" in link for link in footprint.links(os.getpid())):
        found[CONTEXT] = 1
    for pid, command in _of_this_run().items():
        if command.startswith(footprint.ACTORS):
            found[f"process {pid} of an actor"] += 1
        elif not ray_is_up or not _is_rays(command):
            found[f"process {pid} {command[:60]}"] += 1
    if ray_is_up:
        from ray.util import list_named_actors

        found.update(f"actor {actor['name']}" for actor in list_named_actors(all_namespaces=True))
    return found


def assert_nothing_left(before: Counter[str], wait_s: float = WAIT_S) -> None:
    """Fail where something is left that was not there before; what is ending gets a while."""
    left = footprint.settled(before, wait_s, left_behind)
    if left.pop(CONTEXT, 0):  # a test may compute on the GPU itself; its context stays
        left.pop(footprint.GPU, None)
    assert not left, "left behind: " + "; ".join(f"{n} x {what}" for what, n in left.items())


def _ray_is_up() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _is_rays(command: str) -> bool:
    """A server or worker of Ray."""
    return command.startswith("ray::") or "/ray/" in command


def _is_pytests(name: str) -> bool:
    """Folders that pytest and this run's own fixtures keep to the end."""
    return "hotcold-cache" in name or "pytest-of-" in name


def _of_this_run() -> dict[int, str]:
    """Living processes below this one, or with this run's cache in their environment."""
    here, found = os.getpid(), footprint.descendants(os.getpid())
    marker = f"HOTCOLD_CACHE={os.environ.get('HOTCOLD_CACHE')}\0"
    commands = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == here:
            continue
        pid, environment = int(entry.name), processes.read_text(f"{entry}/environ")
        if pid in found or marker in environment:
            command = processes.read_text(f"{entry}/cmdline").replace("\0", " ").strip()
            if command:  # a zombie has none
                commands[pid] = command
    return commands
