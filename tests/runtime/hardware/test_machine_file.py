"""Hardware files: units and sources are checked, shipped ones carry them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.hardware.machine_file import (
    MACHINES,
    SOURCES,
    UNITS,
    Figure,
    MachineFile,
    load_hardware,
    reference_machines,
)
from hotcold.runtime.hardware.profile import HardwareProfile

SHIPPED = [MachineFile.load(MACHINES / f"{name}.json") for name in reference_machines()]
VALUES = {
    "host_gb_per_s": 10.0,
    "gpu_gb_per_s": 100.0,
    "pcie_gb_per_s": 5.0,
    "host_gflops": 50.0,
    "gpu_gflops": 500.0,
    "sync_s": 2e-6,
    "gap_s": 0.0,
}
TABLES = {
    "host_reads": [
        {
            "store": "memfd",
            "threads": 2,
            "record_bytes": 4096,
            "gb_per_s": 9.5,
            "best_gb_per_s": 10.5,
        }
    ],
    "exchanges": [{"what": "two loops", "round_trip_us": 0.4, "p99_round_trip_us": 0.6}],
}


def lab(**changes: Any) -> MachineFile:
    figures = {name: Figure(value, "measured", "by hand") for name, value in VALUES.items()}
    return MachineFile(
        **{
            "name": "lab",
            "about": "two cores",
            "date": "2026-11-22",
            "has_gpu": True,
            "figures": figures,
            "machine": {"key": "0123"},
            "tables": TABLES,
            **changes,
        }
    )


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lab.json"
    lab().save(path)
    assert MachineFile.load(path) == lab()
    assert load_hardware(str(path)) == lab().profile
    assert [entry.name for entry in path.parent.iterdir()] == ["lab.json"]
    json.loads(path.read_text())
    assert len(path.read_text().splitlines()) < 40, "one line a figure, for people"


def test_the_profile_is_measured_if_every_figure_is() -> None:
    assert lab().profile == HardwareProfile(
        "lab", True, 10.0, 100.0, 5.0, 50.0, 500.0, 2e-6, has_gpu=True, gap_s=0.0
    )
    guessed = {**lab().figures, "sync_s": Figure(1e-6, "estimated", "a guess")}
    assert not lab(figures=guessed).profile.measured


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: str(file.name))
def test_shipped_files_say_where_each_figure_comes_from(file: MachineFile) -> None:
    assert set(file.figures) >= set(VALUES) - {"gap_s"} and file.about and file.date
    for name, figure in file.figures.items():
        assert figure.source in SOURCES and name in UNITS
        assert len(figure.origin) > 10, f"{name}: {figure.origin!r} says too little"
        if figure.source == "paper":
            assert "section" in figure.origin
        if figure.source == "measured":
            assert "paper" not in file.about
    assert file.profile == load_hardware(file.name)
    assert file.profile.measured == bool(file.machine), "only a measured machine is identified"


def edit(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    """A change of one entry, its keys joined by dots; None takes it away."""

    def change(data: dict[str, Any]) -> None:
        *way, last = path.split(".")
        place: Any = data
        for key in way:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("figures.sync_s.unit", "us"), "figure sync_s is in 'us'; it must be in 's'"),
        (edit("figures.host_gb_per_s.unit", "GiB/s"), "must be in 'GB/s'"),
        (edit("figures.host_gb_per_s.value", -1.0), "figure host_gb_per_s is -1.0.*above 0"),
        (edit("figures.host_gb_per_s.value", 0), "figure host_gb_per_s is 0.*above 0"),
        (edit("figures.gap_s.value", -1e-9), "figure gap_s is -1e-09.*0 or more"),
        (edit("figures.gpu_gb_per_s.value", float("nan")), "figure gpu_gb_per_s is nan"),
        (edit("figures.gpu_gb_per_s.value", float("inf")), "figure gpu_gb_per_s is inf"),
        (edit("figures.gpu_gb_per_s.value", 10**400), "figure gpu_gb_per_s is 1000"),
        (edit("figures.gpu_gb_per_s.value", "3 TB/s"), "figure gpu_gb_per_s is '3 TB/s'"),
        (edit("figures.gpu_gb_per_s.value", True), "figure gpu_gb_per_s is True"),
        (edit("figures.pcie_gb_per_s", None), "figures: 'pcie_gb_per_s' is missing"),
        (edit("figures.pcie_gb_per_s", 55.0), "must have value, unit, source and from"),
        (edit("figures.pcie_gb_per_s.source", "hearsay"), "source is 'hearsay'"),
        (edit("figures.pcie_gb_per_s.from", " "), "from must say where it comes from"),
        (edit("figures.speed", {}), "'speed' is not known"),
        (edit("figures", []), "figures must be an object"),
        (edit("version", 2), "version 2, this hotcold reads 1"),
        (edit("name", None), "'name' is missing"),
        (edit("has_gpu", 1), "has_gpu is true or false"),
        (edit("tables.host_reads.0.gb_per_s", -3), "row 0: gb_per_s is -3"),
        (edit("tables.host_reads.0.gb_per_s", None), "row 0: 'gb_per_s' is missing"),
        (edit("tables.host_reads.0.store", 7), "row 0: store is 7; it must be text"),
        (edit("tables.weather", []), "tables: 'weather' is not known"),
        (edit("tables.exchanges", {}), "must be a list"),
    ],
)
def test_damage_is_one_clear_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    data = copy.deepcopy(lab().to_json())
    change(data)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message) as found:
        load_hardware(str(path))
    assert str(path) in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b'{"format": 3}', b"[" * 9999]
)
def test_what_is_no_profile_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="x.json"):
        load_hardware(str(path))
    with pytest.raises(CheckpointError, match="x.json"):
        MachineFile.load(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than"):
        load_hardware(str(path))


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        lab().save(tmp_path / "file" / "lab.json")


def test_beside_a_gpu_the_figures_are_of_all_cores_but_two() -> None:
    shape = {"store": "memfd", "record_bytes": 30720, "best_gb_per_s": 99}
    rates = ((4, 5.0), (14, 10.0), (16, 11.0))
    reads = [{**shape, "threads": threads, "gb_per_s": rate} for threads, rate in rates]
    file = lab(machine={"cores": 16}, tables={**TABLES, "host_reads": reads})
    assert file.with_threads(14) == file.with_threads(16) == file.profile
    assert file.with_threads(4).host_gb_per_s == 5.0
    assert file.with_threads(7).host_gflops == pytest.approx(file.profile.host_gflops / 2)
    without = lab(machine={"cores": 16}, has_gpu=False, tables=file.tables)
    assert without.with_threads(14).host_gb_per_s == pytest.approx(10 / 1.1)


@pytest.mark.parametrize("has_gpu", [True, False])
def test_fewer_threads_read_and_compute_less(tmp_path: Path, has_gpu: bool) -> None:
    reads = [
        {"store": store, "threads": n, "record_bytes": size, "gb_per_s": rate, "best_gb_per_s": 99}
        for store, size, slower in (("file", 30720, 2), ("memfd", 30720, 1), ("memfd", 4096, 9))
        for n, rate in ((1, 10 / slower), (2, 18 / slower), (4, 30 / slower))
    ]
    file = lab(has_gpu=has_gpu, tables={**TABLES, "host_reads": reads})
    whole = file.profile
    assert file.with_threads(None) == file.with_threads(4) == file.with_threads(9) == whole
    for threads, share in ((1, 1 / 3), (2, 0.6), (3, 0.6)):
        part = file.with_threads(threads)
        assert part.host_gb_per_s == pytest.approx(whole.host_gb_per_s * share)
        assert part.host_gflops == pytest.approx(whole.host_gflops * threads / 4)
        own = part.gpu_gb_per_s / whole.gpu_gb_per_s
        assert own == pytest.approx(1 if has_gpu else share)
        assert part.in_turn == (not has_gpu and threads == 3)
        assert part.name == f"lab, --threads {threads}" and part.sync_s == whole.sync_s
    assert lab(tables={}).with_threads(1) == lab(tables={}).profile
    file.save(tmp_path / "lab.json")
    assert load_hardware(str(tmp_path / "lab.json"), 2) == file.with_threads(2)
    assert HardwareProfile.from_json(file.with_threads(2).to_json()) == file.with_threads(2)
    assert load_hardware("pc-low", 1) == load_hardware("pc-low")
