"""How much device memory a process takes before it has allocated anything: context, code, graphs.

It depends on GPU, driver, plug-in and the number of kernels in a model's graphs, so it is measured
at launch, in a process of its own that ends at once: `python -m hotcold.native.gpu.cuda_probe
PLUGIN NODES GRAPHS` makes a context with all kernels loaded, runs one, builds graphs of as many
kernels and prints the bytes by which the driver's count of used memory rose. `--variant LIBRARY`
loads a CUDA variant's kernels too; with `--remote-predictor NODES` there is a second such process,
both under a private MPS daemon, whose server counts too.

The driver counts the whole device, so whatever another program took or freed meanwhile would be in
the figure: it counts only if the device is afterwards as full as it was before, and is measured
again otherwise.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np

from hotcold.native.gpu import mps, nvml

TIMEOUT_S = 60.0
ATTEMPTS = 3
LEAST, MOST = 32 << 20, 8 << 30  # what a context can take; an H100's takes 500 MiB and more
SAME = 2 << 20  # two looks at the used memory that differ by no more saw the same
FREED_S = 1.0  # within which the memory of a process that ended is free again
KERNELS_A_LAYER = 13  # of an executor's graph, at most; native/cuda/executor/graph.cu
PREDICTOR_KERNELS_A_LAYER = 3  # of a predictor's own process: wait and answer, two products


def graph_shape(n_layers: int, max_batch: int) -> tuple[int, int]:
    """Kernels of a pass's graph, at most, and how many graphs there are: one a power of two."""
    return KERNELS_A_LAYER * n_layers + 8, (max_batch - 1).bit_length() + 1


def predictor_nodes(n_layers: int) -> int:
    """Kernels of the graph of a predictor's own process, at most."""
    return PREDICTOR_KERNELS_A_LAYER * n_layers + 1


@cache
def context_bytes(
    plugin: Path, nodes: int, graphs: int, remote: int = 0, variant: Path | None = None
) -> int | None:
    """Device memory of a process that uses the plug-in, bytes; None where it cannot be measured.

    nodes: kernels of each of its graphs. remote: kernels of a graph of a second process, both under
    MPS; 0: there is none. variant: a compiled CUDA variant that is loaded too.
    """
    command = [sys.executable, "-m", "hotcold.native.gpu.cuda_probe"]
    command += [str(plugin), str(nodes), str(graphs)]
    command += ["--remote-predictor", str(remote)] if remote else []
    command += [] if variant is None else ["--variant", str(variant)]
    likely = []
    for _ in range(ATTEMPTS):
        before = nvml.used_bytes() or 0
        taken = _run(command)
        if taken is None:
            return None
        if LEAST <= taken <= MOST:
            likely.append(taken)
            if _settles(before):
                return taken
    return max(likely, default=None)  # of disturbed looks the safest


def _run(command: list[str]) -> int | None:
    """What the probe printed; None where it failed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # Loaded as they are first used, kernels would take memory after it was counted.
    environment["CUDA_MODULE_LOADING"] = "EAGER"
    try:
        said = subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=TIMEOUT_S, env=environment
        )
        return int(said.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _settles(before: int) -> bool:
    """Whether the device is as full as before, once the probe's memory is free again."""
    deadline = time.monotonic() + FREED_S
    while abs((nvml.used_bytes() or 0) - before) > SAME:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _take(plugin: Path, nodes: int, graphs: int, variant: Path | None) -> None:
    """Take what a process of an engine takes beside its own allocations, until this one ends."""
    from hotcold.native.bindings import device_kernels
    from hotcold.native.bindings.device import open_plugin

    library, scores = open_plugin(plugin), np.ones((1, 64), np.float32)
    own = library if variant is None else device_kernels.Fitted(library, variant)
    device_kernels.split(own, scores, 0.5, np.zeros(64, np.int8))
    device_kernels.hold_graphs(library, nodes, graphs)


def _probe(plugin: Path, nodes: int, graphs: int, remote: int, variant: Path | None) -> int:
    before = nvml.used_bytes() or 0
    if not remote:
        _take(plugin, nodes, graphs, variant)
        return (nvml.used_bytes() or 0) - before
    with ExitStack() as held:
        daemon = held.enter_context(mps.Daemon())
        for kernels in (nodes, remote):
            command = [sys.executable, "-m", "hotcold.native.gpu.cuda_probe", "--hold"]
            command += [str(plugin), str(kernels), str(graphs)]
            process = held.enter_context(
                subprocess.Popen(
                    command if variant is None else [*command, "--variant", str(variant)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, **daemon.environment},
                )
            )
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("a client of the MPS daemon could not use the GPU")
        return (nvml.used_bytes() or 0) - before


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plugin", type=Path)
    parser.add_argument("nodes", type=int)
    parser.add_argument("graphs", type=int)
    parser.add_argument("--remote-predictor", type=int, default=0)
    parser.add_argument("--variant", type=Path)
    parser.add_argument("--hold", action="store_true", help="until standard input ends")
    options = parser.parse_args()
    given = (options.plugin, options.nodes, options.graphs)
    if options.hold:
        _take(*given, options.variant)
        print("taken", flush=True)
        sys.stdin.read()
    else:
        print(_probe(*given, options.remote_predictor, options.variant))


if __name__ == "__main__":
    _main()
