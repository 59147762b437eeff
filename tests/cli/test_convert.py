"""hotcold convert, and int8 neurons on the command line."""

import json
from pathlib import Path

import pytest
from support.command import Run, only_line
from support.models import TinyLlama, write_llama

from hotcold.runtime.model.checkpoints.bundle import open_bundle, resolve_model

MODEL = TinyLlama(d=64, neurons=96, dtype="float16")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "source", MODEL)


def test_into_the_cache_or_a_folder(run: Run, source: Path, tmp_path: Path) -> None:
    cached = run("convert", str(source), "--dtype", "int8", "--json")
    assert cached.code == 0 and "neurons in int8" in cached.out
    facts = json.loads(cached.out.splitlines()[-1])
    assert facts["bundle"] == str(resolve_model(source, "int8").path)
    out = tmp_path / "out" / "bundle"
    ended = run("convert", str(source), "--dtype", "int8", "--out", str(out))
    assert (ended.code, ended.err) == (0, "")
    made = open_bundle(out)
    assert made.checksum == facts["checksum"]
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]
    shown = run("inspect", str(out))
    assert "(llama, float16, neurons int8)" in shown.out


def test_what_cannot_be_converted(run: Run, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert run("convert", str(source), "--out", str(out)).code == 0
    again = run("convert", str(source), "--out", str(out))
    assert again.code == 2 and "is there and no empty folder" in only_line(again.err)
    of_bundle = run("convert", str(out), "--out", str(tmp_path / "other"))
    assert of_bundle.code == 2 and "is a bundle" in only_line(of_bundle.err)
    other = run("convert", str(out), "--dtype", "int8")
    assert other.code == 2 and "holds float16, dtype int8 was asked for" in only_line(other.err)
    unknown = run("convert", str(source), "--dtype", "int4")
    assert unknown.code == 2 and "int4" in only_line(unknown.err)
    (source / "model.safetensors").unlink()
    empty = tmp_path / "empty"
    gone = run("convert", str(source), "--out", str(empty))
    assert gone.code == 2 and only_line(gone.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "source"]


def test_kernels_are_timed_on_int8_records(run: Run) -> None:
    small = ("--d", "1088", "--density", "10", "--threads", "1", "--samples", "3")
    buffer = ("--buffer", "64MiB", "--json")
    ended = run("bench", "kernels", "--dtype", "int8", *small, *buffer)
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert result["dtype"] == "int8"
    case = result["sparse_ffn"]["d1088"]["density10"]
    assert case["threads1"]["gb_per_s"] > 0 and case["bandwidth_fraction"] > 0
    first = result["gate_first"]["d1088"]["density10"]["threads1"]
    assert first["bytes"] > 0
