"""What memory is said to be available: the tightest of machine, control groups and limits."""

import resource
from pathlib import Path

import pytest

from hotcold.runtime.weights import host_memory as memory

GROUP = """0::/job
5:memory:/old
"""


@pytest.mark.parametrize(
    ("files", "nbytes", "bound"),
    [
        ({}, 8 << 30, "the machine"),
        ({"job/memory.max": "max"}, 8 << 30, "the machine"),
        (
            {"job/memory.max": "1000", "job/memory.current": "400"},
            600 + 50,
            "the control group",
        ),
        ({"memory.max": "900", "memory.current": "800"}, 100 + 50, "the control group"),
        (
            {"memory/old/memory.limit_in_bytes": "700", "memory/old/memory.usage_in_bytes": "600"},
            100 + 50,
            "the control group",
        ),
        ({"job/memory.max": "abc", "job/memory.current": "?"}, 8 << 30, "the machine"),
    ],
)
def test_available_memory(
    tmp_path: Path, files: dict[str, str], nbytes: int, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda number: unlimited)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(GROUP)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.with_name("memory.stat").write_text("anon 5\ninactive_file 50\n")
    assert memory.available(tmp_path) == memory.Available(nbytes, bound)


def test_limits_of_the_process_bound_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_AS: 5000 * 1024, resource.RLIMIT_DATA: 2000 * 1024}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (limits[number], -1))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name: x\nVmSize: 1000 kB\nVmData: 500 kB\n")
    assert memory.available(tmp_path) == memory.Available(4000 * 1024, "RLIMIT_AS")
    assert memory.available(tmp_path, private=True) == memory.Available(1500 * 1024, "RLIMIT_DATA")
