"""How much device memory a process takes before it has allocated anything: context, code, graphs.

It depends on GPU, driver, plug-in and the number of kernels in a model's graphs, so it is measured
at launch, in a process of its own that ends at once: `python -m hotcold.native.cuda_probe PLUGIN
NODES GRAPHS` makes a context with all kernels loaded, runs one, builds graphs of as many kernels
and prints the bytes by which the driver's count of used memory rose.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from hotcold.native import nvml

TIMEOUT_S = 60.0


@cache
def context_bytes(plugin: Path, nodes: int, graphs: int) -> int | None:
    """Device memory of a process that uses the plug-in, bytes; None where it cannot be measured.

    Args:
        plugin: the library.
        nodes: kernels of a graph.
        graphs: how many graphs.
    """
    command = [sys.executable, "-m", "hotcold.native.cuda_probe"]
    command += [str(plugin), str(nodes), str(graphs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # Loaded as they are first used, kernels would take memory after it was counted.
    environment["CUDA_MODULE_LOADING"] = "EAGER"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            env=environment,
        )
        return int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _probe(plugin: Path, nodes: int, graphs: int) -> int:
    from hotcold.native import device_kernels
    from hotcold.native.device import open_plugin

    before = nvml.used_bytes() or 0
    library, scores = open_plugin(plugin), np.ones((1, 64), np.float32)
    device_kernels.split(library, scores, 0.5, np.zeros(64, np.int8))
    device_kernels.hold_graphs(library, nodes, graphs)
    return (nvml.used_bytes() or 0) - before


if __name__ == "__main__":
    print(_probe(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
