"""What a test that starts actors could leave behind, and the check that it did not.

Seen from outside the engine: processes, unnamed memory, descriptors of the exchange, threads, files
in /dev/shm and the temp folder. Ray's own processes and log folder are not counted: a test run
keeps one Ray for all its tests.
"""

import os
import tempfile
import threading
import time
from pathlib import Path

from support.processes import children

ACTORS = ("ray::GpuExecutor", "ray::CpuExecutor", "ray::Predictor", "ray::HopActor")
WAIT_S = 10.0


def left_behind() -> list[str]:
    """Names of everything of ours that exists now."""
    here = os.getpid()
    found = [f"thread {t.name}" for t in threading.enumerate() if t.name.startswith("hotcold-")]
    for pid in [here, *children()]:
        command = _read(Path(f"/proc/{pid}/cmdline"))
        if command.startswith(ACTORS):
            found.append(f"process {pid} {command[:40]}")
        found += [f"descriptor of {pid}: {link}" for link in _links(pid, pid == here)]
    for folder in ("/dev/shm", tempfile.gettempdir()):
        found += [str(path) for path in Path(folder).glob("hotcold*") if _is_ours(path)]
    return found


def _is_ours(path: Path) -> bool:
    """Not pytest's own temp folders, and not those the test run made for itself."""
    return "hotcold-cache" not in path.name


def _links(pid: int, mine: bool) -> list[str]:
    """Descriptors of the exchange, weights and KV memory; in this process also pidfds."""
    found = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return []
    for name in names:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if "memfd:hotcold" in link or (mine and link == "anon_inode:[pidfd]"):
            found.append(link)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def assert_nothing_left(before: list[str]) -> None:
    """Fail where something is left that was not there before; what is ending gets a while."""
    deadline = time.monotonic() + WAIT_S
    while True:
        left = [name for name in left_behind() if name not in before]
        if not left:
            return
        if time.monotonic() > deadline:
            raise AssertionError("left behind: " + "; ".join(left))
        time.sleep(0.05)
