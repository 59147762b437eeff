"""Processes of this machine, from /proc: their state, and the helpers of a Ray of our own."""

import os
import signal
from collections.abc import Iterable

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def read_text(path: str) -> str:
    """A file of /proc; empty where it is gone, or not ours to read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def commands() -> dict[int, list[str]]:
    """The words of every process's command line, by process id; [""] where it has ended."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return {pid: _command(pid).split("\0") for pid in pids}


def parents() -> dict[int, int]:
    """Parents of the living processes, zombies left out."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(entry) if entry.isdigit() else []
        if fields and fields[0] not in ("Z", "X"):
            found[int(entry)] = int(fields[1])
    return found


def _stat(pid: int | str) -> list[str]:
    """State, parent and so on; empty where it is gone."""
    return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _state(pid: int) -> str:
    return (_stat(pid) or [""])[0]


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
    above = parents()
    nodes = {pid for pid, parent in above.items() if parent == of}
    children = [pid for pid, parent in above.items() if parent in nodes]
    return tuple(pid for pid in children if _command(pid).startswith(AGENTS))


def ray_heads() -> list[str]:
    """Addresses of the clusters that have a node on this machine."""
    option = "--gcs-address="
    raylets = (command for command in commands().values() if command[0].endswith("/raylet"))
    words = (word for command in raylets for word in command)
    return sorted({word.removeprefix(option) for word in words if word.startswith(option)})


def end_processes(pids: Iterable[int]) -> None:
    """Kill those that are still Ray agents."""
    for pid in pids:
        if _command(pid).startswith(AGENTS):
            os.kill(pid, signal.SIGKILL)


def _command(pid: int) -> str:
    return read_text(f"/proc/{pid}/cmdline")
