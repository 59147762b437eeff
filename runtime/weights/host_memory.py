"""How much memory this process may still take, by machine, control group and its own limits.

Checked before anything large is filled, so that too little memory gives an error and not a kill by
the OOM killer. Used by the weight stores and by `hotcold doctor`.
"""

import resource
from dataclasses import dataclass
from pathlib import Path

from hotcold.native.errors import BudgetError
from hotcold.runtime.limits import control_groups
from hotcold.runtime.units import format_bytes

SPARE_BYTES = 256 << 20  # left to everything else on the machine
UNLIMITED = 1 << 60  # control groups write "no limit" as a number near 2**63
NAMES = (  # of a group's limit and use, in versions 1 and 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ("memory.max", "memory.current"),
)


@dataclass(frozen=True)
class Available:
    """Bytes that may still be taken, and what says so ("the machine", "RLIMIT_AS", ...)."""

    nbytes: int
    bound: str


def meminfo(root: Path = Path("/")) -> dict[str, int]:
    """/proc/meminfo in bytes; empty where it cannot be read."""
    return _sizes(root / "proc/meminfo")


def available(root: Path = Path("/"), private: bool = False) -> Available:
    """What this process may still take; private memory has a limit of its own."""
    found = []
    if "MemAvailable" in (info := meminfo(root)):
        found.append(Available(info["MemAvailable"], "the machine"))
    for folder, is_second in control_groups("memory", root):
        if (room := _room(folder, *NAMES[is_second])) is not None:
            found.append(Available(room, "the control group"))
    status = _sizes(root / "proc/self/status")
    limits = [("RLIMIT_AS", resource.RLIMIT_AS, "VmSize")]
    if private:
        limits.append(("RLIMIT_DATA", resource.RLIMIT_DATA, "VmData"))
    for name, number, used in limits:
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            found.append(Available(max(0, soft - status.get(used, 0)), name))
    return min(found, key=lambda one: one.nbytes, default=Available(UNLIMITED, "the machine"))


def require(nbytes: int, what: str, way_out: str, private: bool = False) -> None:
    """Refuse what would not fit.

    Raises:
        BudgetError: need, what is available, what bounds it, and the way out.
    """
    free = available(private=private)
    if nbytes + SPARE_BYTES > free.nbytes:
        raise BudgetError(
            f"{what} needs {format_bytes(nbytes)} of memory and {format_bytes(SPARE_BYTES)} to "
            f"spare, {free.bound} has {format_bytes(free.nbytes)} available; {way_out}"
        )


def _sizes(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.replace(":", "").split() for line in lines if line.endswith(" kB"))
    return {pair[0]: int(pair[1]) * 1024 for pair in pairs}


def _room(folder: Path, limit_name: str, used_name: str) -> int | None:
    """Bytes left in one group, its reclaimable file pages counted as free; None: no limit."""
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        if not limit.isdigit() or int(limit) >= UNLIMITED:
            return None
        rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {row[0]: int(row[1]) for row in rows if len(row) == 2}
    except (OSError, ValueError):
        return None
    inactive = stat.get("total_inactive_file", stat.get("inactive_file", 0))
    return max(0, int(limit) - used + inactive)
