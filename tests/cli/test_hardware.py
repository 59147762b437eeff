"""`hotcold hardware` and `hotcold roofline` as typed, on tiny efforts."""

import json
import re
from pathlib import Path

import pytest
from support.command import Run, only_line

from hotcold.native.abi.formats import FORMATS
from hotcold.runtime.bench import hardware
from hotcold.runtime.bench.hardware import Effort, host_reads, thread_counts
from hotcold.runtime.bench.hop import HopResult
from hotcold.runtime.hardware.caches import last_level_bytes
from hotcold.runtime.hardware.machine_file import MachineFile, load_hardware
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.hardware.this_machine import chosen_hardware, identity, own_path

RECORDS = (4096, 30 << 10)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure next to nothing, into a cache of this test, as on a machine without a GPU."""
    monkeypatch.setattr(Effort, "choose", lambda quick: Effort(64 << 20, 1, 3, 100))
    monkeypatch.setattr(hardware, "WIDTH", 256)
    monkeypatch.setattr(hardware, "RECORDS", RECORDS)
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOTCOLD_CUDA", "off")


def test_measures_and_keeps_it_for_later_commands(run: Run, tiny: None, tmp_path: Path) -> None:
    ended = run("hardware", "--quick", "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    path = own_path(identity()["key"])
    assert result["path"] == str(path) and "hardware: written to" in ended.err
    file = MachineFile.load(path)
    assert file.to_json() == {k: v for k, v in result.items() if k != "path"}
    assert not file.has_gpu and "no GPU figures: HOTCOLD_CUDA is off" in ended.err
    assert all(figure.source == "measured" for figure in file.figures.values())
    reads = file.tables["host_reads"]
    expected = {
        (kind, threads, length)
        for kind in ("file", "memfd", "private")
        for threads in thread_counts()
        for length in RECORDS
    }
    assert {(r["store"], r["threads"], r["record_bytes"]) for r in reads} == expected
    assert {row["dtype"] for row in file.tables["neurons"]} == set(FORMATS)
    assert all(unit in ended.out for unit in ("GB/s", "GFLOP/s")) and "host reads" in ended.out
    assert chosen_hardware(None) == file.profile != HardwareProfile.unmeasured()
    solved = run("solve", "--vram", "24MiB", "--out", str(tmp_path / "plan"), "--json")
    assert json.loads(solved.out.splitlines()[-1])["hardware"] == file.profile.to_json()


def test_a_file_to_pass_on_stays_out_of_the_cache(
    run: Run, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hop = HopResult(0.25, 0.5, 100)
    monkeypatch.setattr(hardware, "measure_hop", lambda *_, **__: hop)
    out = tmp_path / "lab.json"
    for _ in range(2):  # over its own earlier file
        ended = run("hardware", "--out", str(out), "--name", "lab")
        assert ended.code == 0, ended.err
    profile = load_hardware(str(out))
    assert profile.name == "lab" and profile.sync_s == pytest.approx(2 * 0.25e-6)
    assert not own_path(identity()["key"]).exists()
    placed = run("roofline", "--hardware", str(out), "--json")
    assert json.loads(placed.out.splitlines()[-1])["hardware"]["name"] == "lab"


def test_nothing_is_written_where_it_is_interrupted(
    run: Run, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hardware, "measure_hop", stop)
    out = tmp_path / "lab.json"
    assert run("hardware", "--out", str(out)).code == 130
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_not_overwritten(run: Run, tiny: None, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    for out in (thesis, tmp_path):
        ended = run("hardware", "--out", str(out))
        assert ended.code == 2 and "--out" in only_line(ended.err)
    assert thesis.read_text() == "years of work"
    assert run("hardware", "--name", "").code == 2


def test_threads_are_counted_up_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, expected in {
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        6: [1, 2, 4, 6],
        16: [1, 2, 4, 8, 16],
    }.items():
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, n=cores: set(range(n)))
        assert thread_counts() == expected


def test_effort_fits_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((64 << 30, 1 << 30), (4 << 30, 512 << 20), (1 << 30, 128 << 20)):
        monkeypatch.setattr(
            "hotcold.runtime.weights.host_memory.available",
            lambda n=free: type("Free", (), {"nbytes": n, "bound": "test"})(),
        )
        monkeypatch.setattr(hardware, "last_level_bytes", lambda: 0)
        assert Effort.choose(False).nbytes == expected
        assert Effort.choose(True).nbytes == min(expected, 256 << 20)
        monkeypatch.setattr(hardware, "last_level_bytes", lambda: 480 << 20)
        room = max(free // 8, 128 << 20)
        for quick, cold in ((False, 8 * 480), (True, 8 * 480 // 3)):
            effort = Effort.choose(quick)
            assert effort.nbytes == min(cold << 20, room) // (64 << 20) * (64 << 20)
            assert effort.window == min(256 << 20 if quick else 1 << 30, effort.nbytes)


def test_between_two_reads_of_a_window_all_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def read_rates(at: int, size: int, *_: object) -> list[float]:
        seen.append((at, size))
        return [1.0]

    monkeypatch.setattr(hardware, "read_rates", read_rates)
    effort = Effort(192 << 20, 2, 1, 1, window=64 << 20)
    rows = host_reads(effort, [1, 2], lambda _: None)
    assert len(rows) == 3 * 2 * len(hardware.RECORDS)
    last: dict[int, int] = {}
    for index, (at, size) in enumerate(seen):
        assert size == 64 << 20
        assert index - last.get(at, index - 9) == 9
        last[at] = index
    assert len(last) == 9


def test_the_last_level_of_caches_is_counted_once_an_instance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert last_level_bytes(tmp_path) == 0
    caches = (("Data", "1", "48K", "{0}"), ("Instruction", "1", "64K", "{0}"))
    last = ("Unified", "3", "32768K", "{1}")
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (9, "8-9")):
        for index, cache in enumerate((*caches, last)):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
            folder.mkdir(parents=True)
            names = ("type", "level", "size", "shared_cpu_list")
            for name, word in zip(names, cache, strict=True):
                (folder / name).write_text(word.format(core, shared) + "\n")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 5})
    assert last_level_bytes(tmp_path) == 64 << 20
    (tmp_path / "sys/devices/system/cpu/cpu2/cache/index2/size").write_text("much")
    assert last_level_bytes(tmp_path) == 32 << 20


# ---- roofline ----------------------------------------------------------------------------------


def test_roofline_of_a_shape(run: Run) -> None:
    ended = run(
        *("roofline", "--shape", "llama2-13b", "--hardware", "h100-box", "--vram", "16GiB"),
        *("--density", "0.12", "--share80", "0.3", "--kv-dtype", "float16", "--json"),
    )
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    parts = ("attention", "predictor", "kv", "head", "ffn", "exchange", "gaps")
    total_ms = sum(result[f"{part}_ms"] for part in parts)
    assert result["token_ms"] == pytest.approx(total_ms)
    assert result["bound_tokens_per_s"] == pytest.approx(1000 / total_ms)
    assert result["predictor_ms"] == pytest.approx(40 * 960 * (5120 + 13824) * 2 / 3000e9 * 1e3)
    assert re.search(r"attention +8\.389 +2\.796", ended.out)
    assert result["bytes_by_device"]["gpu0"] <= (16 << 30) - result["reserve_bytes"]
    assert result["reserve_bytes"] > result["hardware"]["context_bytes"] == 560 << 20
    assert "of the budget for the CUDA context (560.0 MiB)" in ended.out


def test_roofline_of_a_schedule_that_reads_ahead(run: Run) -> None:
    shape = ("roofline", "--shape", "llama2-13b", "--vram", "16GiB", "--density", "0.12", "--json")
    plain, ahead, two_cores, same = (
        run(*shape, "--hardware", machine, "--schedule", schedule)
        for machine in ("h100-box", "xeon-2core")
        for schedule in ("selective", "lookahead")
    )
    one, other = (json.loads(ended.out.splitlines()[-1]) for ended in (plain, ahead))
    assert other["bound_tokens_per_s"] > 1.1 * one["bound_tokens_per_s"]
    assert other["cold_ms"] == one["cold_ms"] and other["attention_ms"] == one["attention_ms"]
    assert "cold starts with the attention before" in ahead.out
    assert "attention before" not in plain.out + same.out
    assert two_cores.out.replace('"selective"', '"lookahead"') == same.out  # memory is never idle
    assert run(*shape, "--schedule", "serial").code == 2


def test_roofline_of_the_embedded_model_and_a_plan(run: Run, tmp_path: Path) -> None:
    plan = str(tmp_path / "plan")
    exact = ("--vram", "24MiB", "--predictor", "exact")
    assert run("solve", *exact, "--policy", "random", "--out", plan).code == 0
    of_plan = run("roofline", "--plan", plan, "--predictor", "exact", "--json")
    assert of_plan.code == 0, of_plan.err
    result = json.loads(of_plan.out.splitlines()[-1])
    assert result["policy"] == "random" and "in turn, from one memory" in of_plan.out
    assert result["gaps_ms"] == 0 and not result["hardware"]["measured"]
    # Every gate row is read, and the other two where it fires: 10.3 % on the profile's text.
    record, neurons = 3 * 320 * 2, 8 * 1280
    assert result["bytes"]["hot"] + result["bytes"]["cold"] == pytest.approx(
        neurons * record * (1 / 3 + 2 / 3 * 0.1), rel=0.03
    )
    greedy = run("roofline", *exact, "--json")
    other = json.loads(greedy.out.splitlines()[-1])
    assert other["ffn_ms"] == pytest.approx(result["ffn_ms"])
    on_gpu = run("roofline", "--hardware", "pc-high", "--vram", "1GiB", "--json")
    fast = json.loads(on_gpu.out.splitlines()[-1])
    assert fast["budgets"]["gpu0"] < (1 << 30) - (560 << 20) and fast["cold_ms"] == 0
    assert fast["bound_tokens_per_s"] > other["bound_tokens_per_s"]


def test_a_budget_below_the_modules_is_said(run: Run) -> None:
    arguments = ("roofline", "--shape", "llama2-13b", "--hardware", "h100-box")
    ended = run(*arguments, "--vram", "6GiB")
    assert ended.code == 0 and "modules do not fit the GPU" in ended.err
    assert "reads them over the bus" in ended.err


def test_a_model_to_pass_on_a_gpu_needs_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    ended = run("bench", "hop", "--model", "mine")
    assert ended.code == 2 and not ended.out
    assert "--model 'mine' says whose passes to measure on a GPU" in only_line(ended.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "--shape", "tiny"), "MODEL and --shape exclude each other"),
        (("--shape", "gpt-9"), "shape 'gpt-9' is unknown"),
        (("--density", "0.1"), "--density belongs to --shape"),
        (("--shape", "tiny", "--density", "2"), "density is 2"),
        (("--shape", "tiny", "--overfire", "0.1"), "overfire is 0.1"),
        (("--shape", "tiny", "--predictor", "exact"), "--predictor belongs to MODEL"),
        (("--shape", "tiny", "--hardware", "pc-low", "--vram", "1MiB"), "--vram 1048576 bytes is"),
        (("--hardware", "pc-medium"), "no hardware profile 'pc-medium'"),
        (("--vram", "lots"), "lots"),
        (("--policy", "greedy", "--plan", "."), "--plan and --policy exclude"),
        (("--plan", "."), "no plan in"),
        (("--shape", "tiny", "--policy", "nope"), "no placement policy named 'nope'"),
    ],
)
def test_refused(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ended = run("roofline", *arguments)
    assert ended.code == 2 and not ended.out
    assert re.search(message, only_line(ended.err)), ended.err


def test_a_plan_of_another_shape_is_refused(run: Run, tmp_path: Path) -> None:
    plan = str(tmp_path / "plan")
    assert run("solve", "--shape", "tiny", "--out", plan).code == 0
    ended = run("roofline", "--plan", plan)
    assert ended.code == 2 and "the plan is for (2, 192)" in only_line(ended.err)


def test_compare_takes_hardware(run: Run) -> None:
    ended = run("compare", "--hardware", "pc-medium")
    assert ended.code == 2 and "no hardware profile" in only_line(ended.err)
    ended = run("compare", "--hardware", "pc-low", "--policy", "greedy", "--repeat", "1")
    assert ended.code == 0, ended.err
