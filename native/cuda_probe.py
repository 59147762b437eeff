"""How much device memory a process takes before it has allocated anything: the CUDA context.

It depends on GPU, driver and plug-in, so it is measured at launch, in a process of its own that
ends at once: `python -m hotcold.native.cuda_probe PLUGIN` makes a context, runs a kernel and prints
the bytes by which the driver's count of used memory rose.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from hotcold.native import nvml

TIMEOUT_S = 60.0
LATER = 48 << 20  # graphs, and kernels that the driver loads when they are first used


@cache
def context_bytes(plugin: Path) -> int | None:
    """Device memory of a process that uses the plug-in, bytes; None where it cannot be measured."""
    command = [sys.executable, "-m", "hotcold.native.cuda_probe", str(plugin)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            env=environment,
        )
        return int(done.stdout.split()[-1]) + LATER
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _probe(plugin: Path) -> int:
    from hotcold.native import device_kernels
    from hotcold.native.device import open_plugin

    before = nvml.used_bytes() or 0
    scores = np.ones((1, 64), np.float32)
    device_kernels.split(open_plugin(plugin), scores, 0.5, np.zeros(64, np.int8))
    return (nvml.used_bytes() or 0) - before


if __name__ == "__main__":
    print(_probe(Path(sys.argv[1])))
