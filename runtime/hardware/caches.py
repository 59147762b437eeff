"""How large the last-level caches of the processor are, so that benches can read around them.

Used by runtime/bench/hardware.py. Where the system does not say (containers without /sys, some ARM
machines) the answer is 0, and callers keep their default sizes.
"""

import os
from pathlib import Path

from hotcold.native.errors import ConfigError
from hotcold.runtime.units import parse_bytes


def last_level_bytes(root: Path = Path("/")) -> int:
    """Bytes of all last-level caches that this process's cores share, each counted once.

    A virtual machine is told the size of the whole processor's cache, of which it may get a part.
    """
    found: dict[str, tuple[int, int]] = {}  # by the cores that share it: level, bytes
    for core in os.sched_getaffinity(0):
        folder = root / f"sys/devices/system/cpu/cpu{core}/cache"
        for index in folder.glob("index*"):
            try:
                words = [
                    (index / name).read_text().strip()
                    for name in ("type", "level", "size", "shared_cpu_list")
                ]
                kind, level, size, shared = words
                if kind != "Instruction":
                    found[f"{level} {shared}"] = int(level), parse_bytes(f"{size}iB")
            except (OSError, ValueError, ConfigError):
                continue
    last = max((level for level, _ in found.values()), default=0)
    return sum(size for level, size in found.values() if level == last)
