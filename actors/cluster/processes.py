"""Processes of this machine, from /proc: their state, and the helpers of a Ray of our own."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    return _state(pid) in ("", "Z", "X")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger."""
    return _state(pid) in ("T", "t")


def ray_agents(of: int) -> tuple[int, ...]:
    """Agents among the children of the Ray node processes that process `of` started.

    When their driver is killed Ray's own processes go at once, but these two first try for a minute
    or more to report it to a cluster that is gone (Ray 2.60, measured).
    """
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    nodes = {pid for pid, parent in parents.items() if parent == of}
    children = [pid for pid, parent in parents.items() if parent in nodes]
    return tuple(pid for pid in children if _command(pid).startswith(AGENTS))


def ray_heads() -> list[str]:
    """Addresses of the clusters that have a node on this machine."""
    option = b"--gcs-address="
    commands = (
        _command(int(entry)).split(b"\0") for entry in os.listdir("/proc") if entry.isdigit()
    )
    words = (word for command in commands if command[0].endswith(b"/raylet") for word in command)
    found = {word.removeprefix(option).decode() for word in words if word.startswith(option)}
    return sorted(found)


def end_processes(pids: Iterable[int]) -> None:
    """Kill those that are still Ray agents."""
    for pid in pids:
        if _command(pid).startswith(AGENTS):
            os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
