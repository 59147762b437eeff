"""The measured file is used without being named, on its own machine only."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.hardware import this_machine
from hotcold.runtime.hardware.machine_file import MACHINES, MachineFile, load_hardware
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.hardware.this_machine import chosen_hardware, identity, own_path
from hotcold.runtime.options.config import EngineConfig


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def measured_here() -> MachineFile:
    file = MachineFile.load(MACHINES / "pc-low.json")
    return replace(file, name="here", machine=identity())


def test_without_a_file_rates_are_not_measured(cache: Path) -> None:
    assert chosen_hardware(None) == HardwareProfile.unmeasured()


def test_the_file_in_the_cache_is_used(cache: Path) -> None:
    file = measured_here()
    path = own_path(identity()["key"])
    assert path.parent == cache / "hardware"
    file.save(path)
    assert chosen_hardware(None) == file.profile
    assert chosen_hardware("pc-high") == load_hardware("pc-high")
    assert prepare_model(EngineConfig()).problem.hardware == file.profile
    asked = EngineConfig(hardware="pc-high")
    assert prepare_model(asked).problem.hardware == load_hardware("pc-high")


def test_a_cache_of_another_machine_is_not_trusted(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = identity()
    path = own_path(there["key"])
    measured_here().save(path)
    here = {**there, "key": "f" * 16}
    monkeypatch.setattr(this_machine, "identity", lambda: here)
    assert chosen_hardware(None) == HardwareProfile.unmeasured()  # not even found
    shutil.copy(path, own_path("f" * 16))  # renamed by hand
    with caplog.at_level(logging.WARNING, "hotcold"):
        assert chosen_hardware(None) == HardwareProfile.unmeasured()
    assert "measured on another machine" in caplog.text


def test_a_damaged_file_is_said_and_not_used(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = own_path(identity()["key"])
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with caplog.at_level(logging.WARNING, "hotcold"):
        assert chosen_hardware(None) == HardwareProfile.unmeasured()
    assert "measure again" in caplog.text and str(path) in caplog.text


def test_what_identifies_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(id_: str, cpu: str, memory_kib: int) -> str:
        for folder in ("etc", "proc"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "etc/machine-id").write_text(id_)
        (tmp_path / "proc/cpuinfo").write_text(f"processor\t: 0\nmodel name\t: {cpu}\n")
        (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {memory_kib} kB\n")
        found = identity(tmp_path)
        assert found["cpu"] == cpu and "a-secret-id" not in str(found)
        return str(found["key"])

    first = machine("a-secret-id", "Xeon", 16 << 20)
    assert machine("a-secret-id", "Xeon", (16 << 20) - 4000) == first  # a kernel update
    others = {
        machine("another", "Xeon", 16 << 20),
        machine("a-secret-id", "Epyc", 16 << 20),
        machine("a-secret-id", "Xeon", 32 << 20),
    }
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3, 4})
    others.add(machine("a-secret-id", "Xeon", 16 << 20))
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000")
    others.add(machine("a-secret-id", "Xeon", 16 << 20))
    assert len(others) == 5 and first not in others


def test_no_files_at_all_is_an_identity_too(tmp_path: Path) -> None:
    assert identity(tmp_path)["cpu"] == "unknown"


def test_a_machine_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="neither a file nor one of"):
        chosen_hardware("pc-medium")
