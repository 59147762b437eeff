"""What `hotcold hardware` and the benches say where a machine's rates cannot be right."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from hotcold.actors.cli.common import output
from hotcold.runtime.bench.hardware import doubts
from hotcold.runtime.hardware.machine_file import Figure, MachineFile
from hotcold.runtime.hardware.other_work import TICK_S, OtherWork


def measured(others: float, best: float) -> MachineFile:
    row = {"store": "file", "threads": 2, "record_bytes": 30 << 10, "gb_per_s": 20.0}
    slow = {**row, "threads": 1, "gb_per_s": 1.0, "best_gb_per_s": 9.0}
    return MachineFile(
        name="a",
        about="a",
        date="2026-11-29",
        has_gpu=False,
        figures={"host_gb_per_s": Figure(20.0, "measured", "reads")},
        machine={"cores": 2, "others_cores": others},
        tables={"host_reads": [slow, {**row, "best_gb_per_s": best}]},
    )


def test_a_busy_machine_and_scattered_reads_are_doubtful() -> None:
    assert doubts(measured(0.1, 22.0)) == []
    assert doubts(measured(1.5, 22.0)) == ["other programs kept 1.5 cores busy meanwhile"]
    assert doubts(measured(0.0, 30.0)) == [
        "the fastest read of host memory was 1.50 times the median"
    ]
    assert len(doubts(measured(1.5, 30.0))) == 2
    many = measured(1.5, 22.0)
    assert doubts(replace(many, machine={**many.machine, "cores": 64})) == []


def test_other_work_leaves_out_this_process(tmp_path: Path) -> None:
    stat = tmp_path / "proc/stat"
    stat.parent.mkdir()
    begin = 100 * 1000
    stat.write_text(f"cpu  {begin} 0 0 {begin} 0 0 0 0 0 0\ncpu0 1 2 3\n")
    work = OtherWork(tmp_path)
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    ticks = round(0.3 / TICK_S)
    stat.write_text(f"cpu  {begin + ticks} 0 0 {begin + 999} 0 0 0 0 0 0\n")
    assert work.cores() < 0.2
    stat.write_text(f"cpu  {begin + ticks} 0 0 {begin} 0 0 0 {10000 * ticks} 0 0\n")  # the host's
    assert work.cores() > 0.5
    stat.write_text("nothing known")
    assert OtherWork(tmp_path).cores() == 0


def test_a_share_past_the_bound_is_no_triumph(capsys: pytest.CaptureFixture[str]) -> None:
    assert [output.of_bound(share) for share in (0.5, 1.04, 1.3)] == ["50.0 %", "104.0 %", "wrong"]
    output.note_wrong_bound("bench batch", [0.2, 1.04])
    assert not capsys.readouterr().err
    output.note_wrong_bound("bench batch", [0.2, 1.3])
    said = capsys.readouterr().err
    assert "130.0 % of the bound" in said and "hotcold hardware" in said
