"""The command that plants: what it prints, what it refuses and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import Run, only_line

from hotcold.actors.cli.common import output
from hotcold.runtime.model.checkpoints.bundle import open_bundle


def test_plants_a_bundle_and_says_what_it_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PROGRESS_AFTER_S", 600)  # a busy machine would be told of
    out = tmp_path / "deep" / "model"
    ended = run("plant", "tiny", "--out", str(out), "--tokens", "1024", "--json")
    assert ended.code == 0
    assert ended.err == ""
    said = json.loads(ended.out.splitlines()[-1])
    assert said["checksum"] == open_bundle(out).checksum
    assert said["density"] == pytest.approx(0.12, rel=0.02)
    assert said["share80"] == pytest.approx(0.43, rel=0.03)
    assert said["recall"] == 1
    assert [path.name for path in out.parent.iterdir()] == ["model"]


def test_plants_a_hugging_face_folder(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    ended = run("plant", "tiny", "--out", str(out), "--hf", "--layers", "1", "--tokens", "128")
    assert ended.code == 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1


def test_two_formats_at_once_are_refused(run: Run, tmp_path: Path) -> None:
    ended = run("plant", "tiny", "--out", str(tmp_path / "model"), "--hf", "--format", "gguf")
    assert ended.code == 2
    assert "exclude each other" in ended.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", ["tiny-opt", "small-falcon"])
def test_plants_other_kinds(run: Run, tmp_path: Path, shape: str) -> None:
    out = tmp_path / "model"
    asked = ("--layers", "1", "--recall", "0.9", "--precision", "0.8", "--tokens", "512")
    ended = run("plant", shape, "--out", str(out), *asked, "--json")
    assert ended.code == 0, ended.err
    said = json.loads(ended.out.splitlines()[-1])
    assert said["checksum"] == open_bundle(out).checksum
    assert (said["recall"], said["precision"]) == pytest.approx((0.9, 0.8), rel=0.05)
    assert "predictor recall 9" in ended.out or "predictor recall 8" in ended.out


def test_help_lists_the_shapes_and_says_what_differs(run: Run) -> None:
    said = " ".join(run("plant", "--help").out.split())
    for words in ("opt-175b 96 12288 49152 3% 26% 50%", "falcon-40b 60 8192", "side by side"):
        assert words in said


@pytest.mark.parametrize(
    "more",
    [
        ["--density", "2"],
        ["--layers", "3"],
        ["--precision", "0.05"],
        ["--hidden", "8"],
        ["--device", "abacus"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_planted_is_refused(run: Run, tmp_path: Path, more: list[str]) -> None:
    ended = run("plant", "tiny", "--out", str(tmp_path / "model"), *more)
    assert ended.code == 2
    assert "hotcold: error" in only_line(ended.err)
    assert not list(tmp_path.iterdir())


def test_refuses_a_full_folder_and_an_unknown_shape(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    ended = run("plant", "tiny", "--out", str(tmp_path))
    assert ended.code == 2
    assert "not empty" in only_line(ended.err)
    assert run("plant", "gigantic", "--out", str(tmp_path / "x")).code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_planting_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, "-m", "hotcold.actors.cli.main", "plant", "llama-1b"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "model")], stderr=subprocess.PIPE, env=os.environ
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".model.*/weights.bin")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    assert not list(tmp_path.iterdir())
