"""What affinity and control groups leave this process of the machine's processors and memory.

Control groups of versions 1 and 2 and both at once; a limit may stand in the process's own group or
in any above it. Inside a container its own group may be the root of what is mounted.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")


def control_groups(controller: str, root: Path = ROOT) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's groups and all above them, and whether each is of version 2.

    Args:
        controller: "cpu" or "memory".
        root: where /proc and /sys are, for tests.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/", f"1:{controller}:/"]
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if is_second := controllers == "":
            places = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            places = [mounts / name for name in dict.fromkeys((controller, controllers))]
        else:
            continue
        names = [name for name in path.split("/") if name not in ("", "..")]
        for place in places:
            for depth in range(len(names), -1, -1):
                yield place.joinpath(*names[:depth]), is_second


def cpu_quota(root: Path = ROOT) -> float:
    """Cores' worth of time that the tightest group grants; infinity: no limit."""
    return min((_quota(*group) for group in control_groups("cpu", root)), default=math.inf)


def _quota(folder: Path, is_second: bool) -> float:
    names = ["cpu.max"] if is_second else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = " ".join((folder / name).read_text() for name in names).split()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return math.inf


class Processors(NamedTuple):
    """What may compute here; `quota` is None where the affinity is the tighter limit."""

    cores: tuple[int, ...]
    quota: float | None

    @property
    def at_once(self) -> int:
        """How many threads can make progress at the same time; a part of a core counts as one."""
        return len(self.cores) if self.quota is None else math.ceil(self.quota)

    def __str__(self) -> str:
        count = f"{len(self.cores)} core{'s' * (len(self.cores) > 1)}"
        return count if self.quota is None else f"{count} with a quota of {self.quota:g}"


def processors(root: Path = ROOT) -> Processors:
    """Cores by affinity, and the quota where it grants less."""
    cores, quota = tuple(sorted(os.sched_getaffinity(0))), cpu_quota(root)
    return Processors(cores, quota if quota < len(cores) else None)
