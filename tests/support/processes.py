"""Processes and shared files of this test run, read from /proc: for leak checks."""

import os
from pathlib import Path


def children(of: int | None = None) -> set[int]:
    """Pids of all living descendants of a process (this one), zombies left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # it ended while we looked
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    found = {os.getpid() if of is None else of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid() if of is None else of}


def leftovers() -> set[str]:
    """Names of what a test could leave behind: its processes, and hotcold's files in /dev/shm."""
    shared = Path("/dev/shm")
    files = {f"/dev/shm/{path.name}" for path in shared.glob("*hotcold*")}
    return files | {f"process {pid} ({_command(pid)})" for pid in children()}


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "ended"
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()[:80]
