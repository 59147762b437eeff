"""The GPU's part of `hotcold hardware`, on a GPU."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.checkout import ROOT

from hotcold.native.bindings import device_kernels
from hotcold.native.errors import BackendError
from hotcold.native.gpu import cuda_plugin
from hotcold.runtime.bench.gpu_exchange import exchange
from hotcold.runtime.bench.gpu_rates import gpu_rates
from hotcold.runtime.bench.hardware import Effort, measure
from hotcold.runtime.hardware.machine_file import MachineFile


@pytest.mark.alone
@pytest.mark.gpu
def test_a_gpu_is_measured(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Effort, "choose", lambda quick: Effort(64 << 20, 1, 3, 100))
    file = measure(quick=True)
    assert MachineFile.from_json(file.to_json()) == file
    assert file.has_gpu and file.profile.has_gpu
    figures = {name: one.value for name, one in file.figures.items()}
    assert figures["gpu_gb_per_s"] > figures["pcie_gb_per_s"] > 0
    assert 1e-7 < figures["sync_s"] < 1e-3 and 1e-8 < figures["gap_s"] < 1e-4
    exchanges = {row["what"]: row["round_trip_us"] for row in file.tables["exchanges"]}
    assert exchanges["captured in a GPU graph, alone"] == pytest.approx(1e6 * figures["sync_s"])
    assert {row["dtype"] for row in file.tables["neurons"] if row["device"] == "gpu0"} == {
        "float32",
        "float16",
        "bfloat16",
        "int8",
    }


@pytest.mark.alone
@pytest.mark.gpu
def test_rates_are_of_a_node_and_a_layer(plugin: Any) -> None:
    """Twice as many nodes or layers cost the same each, wide rows more than narrow ones."""
    short, long = (device_kernels.rate_of_gaps(plugin, nodes, 100) for nodes in (200, 800))
    assert 0.5 * short < long < 2 * short
    few, many = (device_kernels.rate_of_exchange(plugin, 512, n, 100) for n in (16, 64))
    assert 0.4 * few < many < 2.5 * few
    assert device_kernels.rate_of_exchange(plugin, 1 << 18, 16, 50) > 2 * many


@pytest.mark.alone
@pytest.mark.gpu
def test_the_forms_of_the_exchange_run(plugin: Any, tmp_path: Path) -> None:
    """What `make exchange-forms` prints: six forms, each with microseconds a layer."""
    nvcc = cuda_plugin.find_compiler()
    if nvcc is None:
        pytest.skip("no nvcc to compile it with")
    program = str(tmp_path / "forms")
    source = str(ROOT / "tests" / "cuda" / "exchange_forms.cu")
    arch = f"-arch=sm_{cuda_plugin.architecture()}"
    subprocess.run([nvcc, "-std=c++17", "-O3", arch, source, "-o", program], check=True)
    said = subprocess.run([program], capture_output=True, text=True, timeout=60, check=True).stdout
    found = dict(line.rsplit("  ", 1) for line in said.splitlines())
    forms = {name.strip(): float(time.split()[0]) for name, time in found.items()}
    assert [name[:2] for name in forms] == ["no", "A:", "A:", "A:", "A:", "B:"]
    assert all(0 < us < 1e4 for us in forms.values())


@pytest.mark.alone
@pytest.mark.gpu
def test_an_exchange_in_a_graph_is_measured(plugin: Any) -> None:
    found = exchange()
    assert found is not None
    assert 0 < found["p50_us"] <= found["p99_us"] < 1e4
    assert found["passes"] > 100


def test_without_a_gpu_there_is_no_exchange_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    assert exchange() is None


def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    with pytest.raises(BackendError, match="HOTCOLD_CUDA is off"):
        gpu_rates(lambda text: None)
    monkeypatch.setenv("HOTCOLD_CUDA", "auto")
    monkeypatch.setattr("hotcold.native.gpu.nvml.gpus", list)
    with pytest.raises(BackendError, match="no NVIDIA GPU is visible"):
        gpu_rates(lambda text: None)
