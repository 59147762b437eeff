"""What `hotcold doctor` can read from /proc, /sys and limits: cores, memory, pages, niceness.

Each probe takes a Machine and returns Checks. Nothing is changed, and a file that is missing is an
answer, not an error. The list of all probes is in `hotcold.runtime.doctor.doctor`.
"""

import os
import platform
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hotcold.runtime.limits import processors
from hotcold.runtime.units import format_bytes
from hotcold.runtime.weights import host_memory as memory

State = Literal["ok", "warn", "fail"]
SHM_BYTES = 1 << 30  # Ray's object store wants more than Docker's 64 MiB
MEMORY_BYTES = 2 << 30  # Ray, three actors and a driver, before any model
X86_SETS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16")
ARM_SETS = ("asimd", "asimdhp", "asimddp", "bf16", "sve")


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        name: what was looked at.
        state: "ok"; "warn": works, but slower or riskier than it could; "fail": hotcold cannot run.
        found: what is there.
        mend: one line that says how to change it; empty where nothing need be done.
    """

    name: str
    state: State
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Machine:
    """Where to look: the root of /proc and /sys, and the environment. Tests give their own."""

    root: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def text(self, path: str) -> str:
        """A file below the root, stripped; empty where it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def chosen(self, path: str) -> str:
        """The bracketed word of a file such as "always [madvise] never"."""
        found = re.search(r"\[(\S+)\]", self.text(path))
        return found[1] if found else ""

    def processes(self, name: str) -> list[int]:
        """Pids of processes whose command line begins with name."""
        found = []
        for folder in (self.root / "proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if command.startswith(name):
                found.append(int(folder.name))
        return sorted(found)


def nearest(folder: Path) -> Path:
    """The folder, or of those above it the first that is there."""
    return next((at for at in (folder, *folder.parents) if os.path.lexists(at)), folder)


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def instruction_sets(machine: Machine) -> list[Check]:
    """Instruction sets the CPU offers, and the kernels that will be used."""
    words = set(machine.text("proc/cpuinfo").split())
    has = [name for name in (*X86_SETS, *ARM_SETS) if name in words]
    found = f"{platform.machine()}: {', '.join(has) or 'none that hotcold has kernels for'}"
    try:
        from hotcold.native.bindings.kernels import active_cpu_variant, cpu_variants

        variant, best = active_cpu_variant(), cpu_variants()[0]
    except Exception as error:  # noqa: BLE001 - whatever keeps the kernels from loading is the answer
        mend = "unset HOTCOLD_CPU, or install hotcold again (pip install -e . in a checkout)"
        return [Check("CPU kernels", "fail", f"{found}; {error}", mend)]
    found = f"{found}; kernels: {variant}"
    if variant != best:
        return [Check("CPU kernels", "warn", found, f"unset HOTCOLD_CPU to use {best}")]
    if variant == "ref":
        return [
            Check("CPU kernels", "warn", found, "a CPU with AVX2 and F16C is several times faster")
        ]
    return [Check("CPU kernels", "ok", found)]


def cores(machine: Machine) -> list[Check]:
    """Cores present, allowed by affinity, and granted by the control group."""
    given = processors(machine.root)
    present, allowed = os.cpu_count() or 1, len(given.cores)
    found = f"{allowed} of {present}"
    if given.quota is not None:
        found += f", quota {given.quota:g}: {given.at_once} threads, which do not spin"
        return [Check("cores", "warn", found, "raise the container's CPU limit")]
    if allowed < present:
        return [Check("cores", "warn", found, "start without taskset, or widen the cpuset")]
    if allowed < 2:
        mend = "three actors share one core; two or more are faster"
        return [Check("cores", "warn", found, mend)]
    return [Check("cores", "ok", found)]


def priorities(machine: Machine) -> list[Check]:
    """Niceness of this process and Ray's, and who goes first when memory runs out."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    asked = machine.env.get("RAY_worker_niceness")
    found = f"{own} here; Ray gives its workers {asked or '15'}, hotcold's actors ask for 0"
    nice = Check("niceness", "ok", found)
    if own > 0:
        mend = (
            "actors get no better priority than the process that starts Ray; start it without nice"
        )
        nice = Check("niceness", "warn", found, mend)
    adjust = machine.text("proc/self/oom_score_adj") or "unknown"
    asked = machine.env.get("RAY_worker_oom_score_adjustment")
    found = f"{adjust} here; Ray gives its workers {asked or '1000'}"
    killed_first = (asked or "1000") == "1000"
    mend = "export RAY_worker_oom_score_adjustment=0 before Ray starts" if killed_first else ""
    return [nice, Check("oom_score_adj", "ok", found, mend)]


def huge_pages(machine: Machine) -> list[Check]:
    """Transparent huge pages for private and for shared memory."""
    folder = "sys/kernel/mm/transparent_hugepage"
    enabled, shared, defrag = (
        machine.chosen(f"{folder}/{name}") for name in ("enabled", "shmem_enabled", "defrag")
    )
    found = f"enabled {enabled or '?'}, shmem {shared or '?'}, defrag {defrag or '?'}"
    if not enabled:
        return [Check("huge pages", "warn", "this kernel has none", "a kernel with THP is faster")]
    if enabled == "never":
        mend = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        return [Check("huge pages", "warn", found, mend)]
    if shared in ("never", "deny") and _kernel(machine) < (6, 1):
        mend = "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        return [Check("huge pages", "warn", f"{found}, kernel before 6.1", mend)]
    return [Check("huge pages", "ok", found)]


def _kernel(machine: Machine) -> tuple[int, ...]:
    release = machine.text("proc/sys/kernel/osrelease") or platform.release()
    return tuple(int(part) for part in re.findall(r"\d+", release)[:2])


def shared_memory(machine: Machine) -> list[Check]:
    """/dev/shm for Ray, a sealed memfd for the exchange, and what may be locked."""
    checks = []
    try:
        stat = os.statvfs(machine.root / "dev/shm")
        size, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
        found = f"{format_bytes(size)}, {format_bytes(free)} free"
        small = size < SHM_BYTES
        mend = "mount -o remount,size=4G /dev/shm (Docker: --shm-size=4g)" if small else ""
        checks.append(Check("/dev/shm", "warn" if small else "ok", found, mend))
    except OSError as error:
        mend = "mount -t tmpfs tmpfs /dev/shm; without it Ray's objects go to the disk"
        checks.append(Check("/dev/shm", "warn", error.strerror or str(error), mend))
    try:
        from hotcold.runtime.weights.memfd import create_sealed

        os.close(create_sealed("hotcold-doctor", 4096))
        checks.append(Check("memfd", "ok", "can be made and sealed"))
    except Exception as error:  # noqa: BLE001 - whatever it is keeps the actors from exchanging
        mend = "allow memfd_create in the container's seccomp profile"
        checks.append(Check("memfd", "fail", str(error), mend))
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return [*checks, Check("memlock", "ok", "unlimited")]
    gpu = (machine.root / "dev/nvidiactl").exists()
    mend = "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity)" if gpu else ""
    return [*checks, Check("memlock", "warn" if gpu else "ok", format_bytes(soft), mend)]


def main_memory(machine: Machine) -> list[Check]:
    """Memory, what bounds it, swap and NUMA."""
    info = memory.meminfo(machine.root)
    free = memory.available(machine.root)
    total = info.get("MemTotal", 0)
    found = f"{format_bytes(free.nbytes)} of {format_bytes(total)} available"
    found += "" if free.bound == "the machine" else f" ({free.bound} says so)"
    low = free.nbytes < MEMORY_BYTES
    mend = "end other programs, or raise the container's memory limit" if low else ""
    checks = [Check("memory", "warn" if low else "ok", found, mend)]
    swap, unused = info.get("SwapTotal", 0), info.get("SwapFree", 0)
    if swap - unused > total // 20:
        found = f"{format_bytes(swap - unused)} of {format_bytes(swap)} in use"
        mend = "weights that are swapped out stall a token; end other programs, then swapoff -a"
        checks.append(Check("swap", "warn", found, mend))
    else:
        checks.append(Check("swap", "ok", f"{format_bytes(swap)}, not in use" if swap else "none"))
    nodes = len(list((machine.root / "sys/devices/system/node").glob("node[0-9]*"))) or 1
    mend = "numactl --interleave=all, or bind to one node where the model fits" if nodes > 1 else ""
    checks.append(Check("NUMA nodes", "warn" if nodes > 1 else "ok", str(nodes), mend))
    return checks
