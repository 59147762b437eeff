"""What control groups and affinity leave: the tightest limit from the own group up to the root."""

import math
import os
from pathlib import Path

import pytest

from hotcold.native.errors import ConfigError
from hotcold.runtime import limits
from hotcold.runtime.hardware.cores import divide_cores, may_spin
from hotcold.runtime.limits import Processors, cpu_quota, processors
from hotcold.runtime.options.config import EngineConfig

GROUPS = "sys/fs/cgroup"
SECOND, FIRST, HYBRID = "0::/a/b\n", "3:cpuset:/\n2:cpu,cpuacct:/a/b\n", "1:cpu:/a/b\n0::/c\n"


def machine(root: Path, groups: str | None, quotas: dict[str, str]) -> Path:
    """A root folder; a quota of version 1 is written "quota period" too."""
    files = {} if groups is None else {"proc/self/cgroup": groups}
    for name, text in quotas.items():
        if name.endswith("cpu.max"):
            files[f"{GROUPS}/{name}"] = text
        else:
            for what, number in zip(("quota", "period"), text.split(), strict=True):
                files[f"{GROUPS}/{name}/cpu.cfs_{what}_us"] = number
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "quotas", "expected"),
    [
        (SECOND, {}, math.inf),
        (SECOND, {"a/b/cpu.max": "50000 100000"}, 0.5),
        (SECOND, {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        (SECOND, {"a/b/cpu.max": "400000 100000", "cpu.max": "25000 50000"}, 0.5),
        (SECOND, {"unified/a/cpu.max": "10000 100000"}, 0.1),
        (SECOND, {"other/cpu.max": "10000 100000"}, math.inf),
        (FIRST, {"cpu,cpuacct/a/b": "50000 100000"}, 0.5),
        (FIRST, {"cpu/a/b": "-1 100000", "cpu/a": "300000 200000"}, 1.5),
        (FIRST, {"cpu/a/b": "200000 100000", "cpu": "100000 100000"}, 1.0),
        (FIRST, {"cpu/a/b": "-1 100000"}, math.inf),
        (HYBRID, {"cpu/a/b": "200000 100000", "unified/c/cpu.max": "70000 100000"}, 0.7),
        (HYBRID, {"cpu/a": "70000 100000", "unified/c/cpu.max": "max 100000"}, 0.7),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),  # a container, in a namespace of its own
        ("0::/../other\n", {"cpu.max": "50000 100000"}, 0.5),  # joined from outside of it
        ("2:cpu:/docker/1f\n", {"cpu": "50000 100000"}, 0.5),  # without one: only its own is there
        (None, {"cpu.max": "50000 100000"}, 0.5),
        (None, {"cpu": "50000 100000"}, 0.5),
        (SECOND, {"a/b/cpu.max": "abc def"}, math.inf),
        (SECOND, {"a/b/cpu.max": ""}, math.inf),
        (SECOND, {"a/b/cpu.max": "5 0"}, math.inf),
    ],
)
def test_the_tightest_quota(
    tmp_path: Path, groups: str | None, quotas: dict[str, str], expected: float
) -> None:
    assert cpu_quota(machine(tmp_path, groups, quotas)) == expected


@pytest.mark.parametrize(
    ("cores", "quota", "at_once", "words"),
    [
        ({0}, "max", 1, "1 core"),
        ({5}, "50000", 1, "1 core with a quota of 0.5"),
        ({5}, "150000", 1, "1 core"),
        ({2, 3, 4, 7}, "max", 4, "4 cores"),
        ({2, 3, 4, 7}, "400000", 4, "4 cores"),
        ({2, 3, 4, 7}, "50000", 1, "4 cores with a quota of 0.5"),
        ({2, 3, 4, 7}, "250000", 3, "4 cores with a quota of 2.5"),
    ],
)
def test_affinity_and_quota_both_bound(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cores: set[int],
    quota: str,
    at_once: int,
    words: str,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    root = machine(tmp_path, SECOND, {"a/cpu.max": f"{quota} 100000"})
    here = processors(root)
    assert (set(here.cores), here.at_once, str(here)) == (cores, at_once, words)


@pytest.mark.parametrize(
    ("cores", "quota", "threads", "counts", "spins"),
    [
        (4, None, None, 4, True),  # whoever waits yields, and nobody pays
        (1, None, None, 1, True),
        (2, 0.5, None, 1, False),
        (1, 0.5, None, 1, False),
        (8, 2.5, None, 3, False),
        (8, 2.5, 1, 1, False),
        (8, 3.0, 1, 1, True),
        (64, 6.0, 2, 2, True),
        (64, 6.0, 4, 4, False),
    ],
)
def test_threads_and_spinning_follow_the_quota(
    cores: int, quota: float | None, threads: int | None, counts: int, spins: bool
) -> None:
    here = Processors(tuple(range(cores)), quota)
    shares = divide_cores(threads, None, here)
    assert {share.threads for share in shares.values()} == {counts}
    assert may_spin(shares, here) == spins
    if quota is not None:
        assert all(share.cores is None for share in shares.values())


@pytest.mark.parametrize("quota", [None, 0.5, 2.5])
def test_too_many_threads_are_told_cores_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None
) -> None:
    here = Processors((0, 1, 2, 3), quota)
    monkeypatch.setattr("hotcold.runtime.options.config.processors", lambda: here)
    most = {None: 8, 0.5: 4, 2.5: 6}[quota]
    EngineConfig(threads=most)
    with pytest.raises(ConfigError) as caught:
        EngineConfig(threads=most + 1)
    text = f"threads {most + 1} is not a whole number in 1..{most}; this process has {here}"
    assert str(caught.value) == text


def test_here() -> None:
    assert 1 <= limits.processors().at_once <= len(os.sched_getaffinity(0))
