"""Processes that hold a weight store, and what their memory costs by the kernel's own count."""

import re
import subprocess
import sys
from pathlib import Path
from types import TracebackType

HOLDER = """
import sys
from pathlib import Path
import numpy as np
from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.weights.weights import WeightStore
bundle = open_bundle(Path(sys.argv[1]))
own = None
if sys.argv[3] == "own":
    ids = np.arange(bundle.spec.n_neurons, dtype=np.int32)
    own = [ids[: len(ids) // 2]] * bundle.spec.n_layers
store = WeightStore.open(bundle, sys.argv[2], own)
filled = getattr(store._closing, "filled_here", False)
def digest():
    return sum(int(store.array(name).reshape(-1).view(np.uint8).sum()) for name in bundle.tensors)
print(digest(), filled, flush=True)
for line in sys.stdin:
    print(digest(), flush=True)
"""


class Holder:
    """A process with a store open, all of it touched.

    Args:
        bundle: the bundle's folder.
        kind: of store.
        own: whether it holds the first half of each layer's neurons privately.
    """

    def __init__(self, bundle: Path, kind: str, own: bool = False) -> None:
        command = [sys.executable, "-c", HOLDER, str(bundle), kind, "own" if own else "none"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self.process.pid
        self.digest, self.filled = 0, False

    def ready(self) -> "Holder":
        """Wait until it has read everything."""
        assert self.process.stdout is not None
        digest, filled = self.process.stdout.readline().split()
        self.digest, self.filled = int(digest), filled == "True"
        return self

    def again(self) -> int:
        """Let it read everything once more."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> "Holder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def weight_memory(pid: int, at_least: int = 8 << 20) -> int:
    """Bytes of a process's weight mappings, shared ones in proportion (PSS).

    Mappings of weights.bin and of the memfd, and private ones of at least so many bytes in huge
    pages.
    """
    total, counts, huge = 0, False, 0
    pss = 0
    for line in [*Path(f"/proc/{pid}/smaps").read_text().splitlines(), "0-0 r 0 0 0"]:
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            total += pss if counts or huge >= at_least else 0
            counts = "weights.bin" in line or "memfd:hotcold-weights" in line
            huge = pss = 0
        elif line.startswith("Pss:"):
            pss = int(line.split()[1]) * 1024
        elif line.startswith("AnonHugePages:"):
            huge = int(line.split()[1]) * 1024
    return total


def huge_share(pid: int) -> float:
    """Share of a process's memfd store that is mapped in huge pages."""
    huge = rss = 0
    counts = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = "memfd:hotcold-weights" in line
        elif counts and line.startswith("Rss:"):
            rss += int(line.split()[1])
        elif counts and line.startswith("ShmemPmdMapped:"):
            huge += int(line.split()[1])
    return huge / max(1, rss)
