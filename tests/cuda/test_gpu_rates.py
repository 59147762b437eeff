"""The GPU's part of `hotcold hardware`, on a GPU."""

from typing import Any

import pytest

from hotcold.native import device_kernels
from hotcold.runtime.bench.gpu_exchange import exchange
from hotcold.runtime.bench.gpu_rates import gpu_rates
from hotcold.runtime.bench.hardware import Effort, measure
from hotcold.runtime.errors import BackendError
from hotcold.runtime.machine_file import MachineFile


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
    }


@pytest.mark.gpu
def test_rates_are_of_a_node_and_a_layer(plugin: Any) -> None:
    """Twice as many nodes or layers cost the same each, wide rows more than narrow ones."""
    short, long = (device_kernels.rate_of_gaps(plugin, nodes, 100) for nodes in (200, 800))
    assert 0.5 * short < long < 2 * short
    few, many = (device_kernels.rate_of_exchange(plugin, 512, n, 100) for n in (16, 64))
    assert 0.4 * few < many < 2.5 * few
    assert device_kernels.rate_of_exchange(plugin, 1 << 18, 16, 50) > 2 * many


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
    monkeypatch.setattr("hotcold.native.nvml.gpus", list)
    with pytest.raises(BackendError, match="no NVIDIA GPU is visible"):
        gpu_rates(lambda text: None)
