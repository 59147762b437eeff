"""Doctor: every badly set thing of a machine is found, named and given its mend."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from hotcold.native.bindings import kernels
from hotcold.native.errors import BackendError
from hotcold.runtime.doctor import doctor, gpu_probe, probes
from hotcold.runtime.doctor.doctor import examine
from hotcold.runtime.doctor.probes import Check, Machine

THP = "sys/kernel/mm/transparent_hugepage"
HEALTHY = {
    "proc/cpuinfo": "flags : fpu avx2 fma f16c avx512f\n",
    "proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\nSwapTotal: 0 kB\n",
    "proc/self/oom_score_adj": "0\n",
    "proc/sys/kernel/osrelease": "6.8.0-generic\n",
    f"{THP}/enabled": "always [madvise] never\n",
    f"{THP}/shmem_enabled": "always within_size advise [never] deny force\n",
    f"{THP}/defrag": "always defer [madvise] never\n",
    "sys/devices/system/node/node0/cpulist": "0-1\n",
    "dev/shm/.keep": "",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A healthy machine of two cores without a GPU."""
    write(tmp_path, HEALTHY)
    monkeypatch.setattr(probes, "SHM_BYTES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(os, "getpriority", lambda which, who: 0)
    monkeypatch.setattr(resource, "getrlimit", lambda number: (resource.RLIM_INFINITY, -1))
    monkeypatch.setattr(gpu_probe, "LIBCUDA", "libno-such-cuda.so.1")
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HOTCOLD_CPU", raising=False)
    return Machine(tmp_path, {"PATH": str(tmp_path / "bin")})


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def program(root: Path, name: str, script: str) -> None:
    write(root, {f"bin/{name}": f"#!/bin/sh\n{script}\n"})
    (root / "bin" / name).chmod(0o755)


def look(machine: Machine) -> dict[str, Check]:
    checks = examine(machine)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert "\n" not in check.found + check.mend
        assert check.state == "ok" or check.mend, f"{check} has no mend"
    return {check.name: check for check in checks}


def test_a_healthy_machine_has_nothing_to_mend(machine: Machine) -> None:
    checks = look(machine)
    assert {check.state for check in checks.values()} <= {"ok", "warn"}
    usual = {"CPU kernels"} if kernels.active_cpu_variant() == "ref" else set()
    assert {name for name, check in checks.items() if check.state == "warn"} == usual
    assert "none" in checks["GPU"].found
    assert "avx512f" in checks["CPU kernels"].found
    assert not (machine.root / "cache").exists()  # looked, not made


@pytest.mark.parametrize(
    ("files", "name", "found", "mend"),
    [
        ({f"{THP}/enabled": "always madvise [never]"}, "huge pages", "enabled never", "madvise |"),
        ({f"{THP}/enabled": ""}, "huge pages", "none", "THP"),
        ({"proc/sys/kernel/osrelease": "5.15.0"}, "huge pages", "before 6.1", "shmem_enabled"),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, "cores", "quota 0.5: 1", "CPU limit"),
        (
            {"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "50000 100000"},
            "cores",
            "2 of 2, quota 0.5: 1 threads",
            "CPU limit",
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/a/b",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "1073741824",
                "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "0",
                "sys/fs/cgroup/memory/a/memory.stat": "",
            },
            "memory",
            "1.0 GiB of 15.3 GiB available (the control group says so)",
            "memory limit",
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            "cores",
            "quota 1.5: 2 threads, which do not spin",
            "CPU limit",
        ),
        (
            {"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 900000 kB\n"},
            "memory",
            "878.9 MiB of 3.8 GiB",
            "end other programs",
        ),
        (
            {
                "proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n"
                "SwapTotal: 4000000 kB\nSwapFree: 1000000 kB\n"
            },
            "swap",
            "2.9 GiB of 3.8 GiB in use",
            "swapoff",
        ),
        ({"sys/devices/system/node/node1/cpulist": "2-3"}, "NUMA nodes", "2", "numactl"),
    ],
)
def test_what_is_badly_set(
    machine: Machine, files: dict[str, str], name: str, found: str, mend: str
) -> None:
    write(machine.root, files)
    check = look(machine)[name]
    assert check.state == "warn"
    assert found in check.found and mend in check.mend


def test_limits_that_mean_nothing_are_not_complained_of(machine: Machine) -> None:
    write(machine.root, {"sys/fs/cgroup/cpu.max": "max 100000", "proc/meminfo": ""})
    checks = look(machine)
    assert checks["cores"].state == "ok"


def test_niceness_and_affinity(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpriority", lambda which, who: 10)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1})
    checks = look(machine)
    assert checks["niceness"].state == "warn" and checks["niceness"].found.startswith("10 here")
    assert checks["cores"].state == "warn" and "taskset" in checks["cores"].mend
    spared = Machine(machine.root, {**machine.env, "RAY_worker_oom_score_adjustment": "0"})
    assert look(spared)["oom_score_adj"].mend == ""


def test_shared_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SHM_BYTES", 1 << 60)
    assert "--shm-size" in look(machine)["/dev/shm"].mend
    (machine.root / "dev/shm/.keep").unlink()
    (machine.root / "dev/shm").rmdir()
    check = look(machine)["/dev/shm"]
    assert check.state == "warn" and "No such file" in check.found

    def refuse(name: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    check = look(machine)["memfd"]
    assert check.state == "fail" and "seccomp" in check.mend


def test_kernels_that_cannot_be_used(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise BackendError("CPU variant 'mmx' asked for by HOTCOLD_CPU is not supported here")

    monkeypatch.setattr(kernels, "active_cpu_variant", refuse)
    check = look(machine)["CPU kernels"]
    assert check.state == "fail" and "'mmx'" in check.found and "HOTCOLD_CPU" in check.mend
    monkeypatch.setattr(kernels, "active_cpu_variant", lambda: "ref")
    monkeypatch.setattr(kernels, "cpu_variants", lambda: ("avx2", "ref"))
    assert look(machine)["CPU kernels"].mend == "unset HOTCOLD_CPU to use avx2"
    monkeypatch.setattr(kernels, "cpu_variants", lambda: ("ref",))
    assert look(machine)["CPU kernels"].state == "warn"


def test_a_gpu_and_its_tools(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine.root, {"dev/nvidiactl": ""})
    program(machine.root, "nvidia-smi", "echo 'NVIDIA X1, 550.1, 8192 MiB'")
    check = look(machine)["GPU"]
    assert check.state == "warn" and "libno-such-cuda" in check.found and "NVIDIA X1" in check.found
    monkeypatch.setattr(gpu_probe, "_libcuda", lambda: 12040)
    checks = look(machine)
    assert checks["GPU"] == Check("GPU", "ok", "NVIDIA X1, 550.1, 8192 MiB; driver for CUDA 12.4")
    assert checks["nvcc"].state == "warn" and "CUDA_HOME" in checks["nvcc"].mend
    assert checks["MPS"].state == "ok" and "is not on PATH" in checks["MPS"].found
    assert "--predictor-process mps" in checks["MPS"].mend
    write(machine.root, {"proc/77/cmdline": "nvidia-cuda-mps-control\0-d\0"})
    program(machine.root, "nvcc", "true")
    program(machine.root, "nvidia-cuda-mps-control", "true")
    checks = look(machine)
    assert checks["nvcc"].found == str(machine.root / "bin/nvcc")
    found = checks["MPS"].found
    assert found.startswith(str(machine.root / "bin/nvidia-cuda-mps-control"))
    assert "for --predictor-process mps; a daemon runs already" in found
    monkeypatch.setattr(resource, "getrlimit", lambda number: (8 << 20, 8 << 20))
    assert look(machine)["memlock"].mend.startswith("ulimit -l")


def test_gpus_that_are_hidden(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine.root, {"dev/nvidiactl": ""})
    program(machine.root, "nvidia-smi", "echo 'NVIDIA X1, 550.1, 8192 MiB'")
    monkeypatch.setattr(gpu_probe, "_libcuda", lambda: gpu_probe.HIDDEN)
    assert "reinstall the driver" in look(machine)["GPU"].mend
    check = look(Machine(machine.root, {**machine.env, "CUDA_VISIBLE_DEVICES": "-1"}))["GPU"]
    assert check.state == "warn" and "CUDA_VISIBLE_DEVICES=-1 hides all" in check.found
    assert check.mend.startswith("unset CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Driver/library version mismatch' >&2; exit 18", "version mismatch"),
        ("exec /no/such/program", "nvidia-smi fails"),
        ("exec sleep 60", "does not answer"),
    ],
)
def test_a_driver_that_does_not_work(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(gpu_probe, "TIMEOUT_S", 0.5)
    write(machine.root, {"dev/nvidiactl": ""})
    program(machine.root, "nvidia-smi", f"PATH=/usr/bin:/bin\n{script}")
    check = look(machine)["GPU"]
    assert check.state == "warn" and words in check.found


def test_the_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = machine.root / "cache"
    monkeypatch.setattr(doctor, "CACHE_BYTES", 1 << 60)
    assert look(machine)["cache"].state == "warn"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = look(machine)["cache"]
    assert check.state == "fail" and "HOTCOLD_CACHE" in check.mend
    write(cache, {"bundles/m/bundle.json": "{}"})
    assert look(machine)["cache"].state == "warn"  # what is there can be run
    monkeypatch.undo()
    monkeypatch.setenv("HOTCOLD_CACHE", str(cache / "bundles/m/bundle.json"))
    assert look(machine)["cache"].state == "fail"


@pytest.mark.parametrize(
    ("package", "version", "state"),
    [
        ("ray", None, "fail"),
        ("ray", "2.9.3", "fail"),
        ("ray", "2.60.0", "ok"),
        ("torch", None, "fail"),
        ("torch", "2.13.0+cpu", "ok"),
    ],
)
def test_packages(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    version: str | None,
    state: str,
) -> None:
    real: Any = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == package else real(name))
    check = look(machine)["Ray" if package == "ray" else package]
    assert check.state == state
    assert version is None or version in check.found


def test_no_proc_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path))
    assert len(look(Machine(tmp_path / "nothing", {}))) > 10
