"""How much device memory a process takes before it has allocated anything: context, code, graphs.

It depends on GPU, driver, plug-in and the number of kernels in a model's graphs, so it is measured
at launch, in a process of its own that ends at once: `python -m hotcold.native.cuda_probe PLUGIN
NODES GRAPHS` makes a context with all kernels loaded, runs one, builds graphs of as many kernels
and prints the bytes by which the driver's count of used memory rose. With APART there are two such
processes under a private MPS daemon, whose server counts too.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np

from hotcold.native import mps, nvml

TIMEOUT_S = 60.0
HOLD = "hold"


@cache
def context_bytes(plugin: Path, nodes: int, graphs: int, apart: int = 0) -> int | None:
    """Device memory of a process that uses the plug-in, bytes; None where it cannot be measured.

    Args:
        plugin: the library.
        nodes: kernels of a graph.
        graphs: how many graphs.
        apart: kernels of a graph of a second process, both under MPS; 0: there is none.
    """
    command = [sys.executable, "-m", "hotcold.native.cuda_probe"]
    command += [str(plugin), str(nodes), str(graphs), *([str(apart)] if apart else [])]
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


def _take(plugin: Path, nodes: int, graphs: int) -> None:
    """Take what a process of an engine takes beside its own allocations, until this one ends."""
    from hotcold.native import device_kernels
    from hotcold.native.device import open_plugin

    library, scores = open_plugin(plugin), np.ones((1, 64), np.float32)
    device_kernels.split(library, scores, 0.5, np.zeros(64, np.int8))
    device_kernels.hold_graphs(library, nodes, graphs)


def _probe(plugin: Path, nodes: int, graphs: int, apart: int) -> int:
    before = nvml.used_bytes() or 0
    if not apart:
        _take(plugin, nodes, graphs)
        return (nvml.used_bytes() or 0) - before
    with ExitStack() as held:
        daemon = held.enter_context(mps.Daemon())
        for kernels in (nodes, apart):
            command = [sys.executable, "-m", "hotcold.native.cuda_probe"]
            process = held.enter_context(
                subprocess.Popen(
                    [*command, str(plugin), str(kernels), str(graphs), HOLD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, **daemon.environment},
                )
            )
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("a client of the MPS daemon could not use the GPU")
        return (nvml.used_bytes() or 0) - before


def _main(arguments: list[str]) -> None:
    plugin, nodes, graphs = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    more = arguments[3] if len(arguments) > 3 else "0"
    if more == HOLD:
        _take(plugin, nodes, graphs)
        print("taken", flush=True)
        sys.stdin.read()  # until whoever measures is done
    else:
        print(_probe(plugin, nodes, graphs, int(more)))


if __name__ == "__main__":
    _main(sys.argv[1:])
