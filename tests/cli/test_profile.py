"""`hotcold profile`: what it prints and writes, what it refuses, and a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command import Run, only_line
from support.models import TinyLlama, write_llama

from hotcold.runtime.profiles.profile import ActivationProfile

STORY = "The old ship lay in the harbour and nobody came to look at it.\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model", TinyLlama())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(STORY * 20)
    return path


def last_line(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_a_profile_and_its_overlap_with_others(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    ended = run("profile", str(model), "--text", str(text), "--out", str(tmp_path / "a"), "--json")
    assert ended.code == 0, ended.err
    result = last_line(ended.out)
    profile = ActivationProfile.load(tmp_path / "a")
    assert result["profile"] == str(tmp_path / "a" / "activations.npz")
    assert result["tokens"] == profile.tokens > len(STORY) * 20
    assert result["sparsity_L"] == pytest.approx(profile.sparsity_L)
    assert result["skipped_lines"] == result["resumed_tokens"] == 0
    assert result["device"] in ("cpu", "cuda") and result["tokens_per_s"] > 0
    assert result["bitmaps"] is None and result["sampled"] is None
    assert ended.out.splitlines()[0].split()[:2] == ["layer", "sparsity"]
    # The same counts as PowerInfer would keep them, and as a file.
    folder = tmp_path / "powerinfer" / "activation"
    folder.mkdir(parents=True)
    for layer, counts_N in enumerate(profile.counts_LN):
        torch.save(torch.from_numpy(counts_N), folder / f"activation_{layer}.pt")
    for other in (folder, folder.parent, tmp_path / "a", tmp_path / "a" / "activations.npz"):
        argv = ["profile", str(model), "--text", str(text), "--out", str(tmp_path / "b")]
        ended = run(*argv, "--max-tokens", "400", "--against", str(other), "--json")
        assert ended.code == 0, ended.err
        assert 0.5 < last_line(ended.out)["overlap"] < 1
        assert f"% of the hottest 20 % as in {other}" in ended.out


def test_json_lines_and_bitmaps(run: Run, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join([json.dumps({"body": STORY}), "oops", json.dumps({"body": "hi"})]))
    argv = ["profile", str(model), "--text", str(path), "--field", "body", "--bitmaps"]
    ended = run(*argv, "--out", str(tmp_path / "out"), "--json", "--device", "cpu")
    assert ended.code == 0, ended.err
    result = last_line(ended.out)
    assert result["skipped_lines"] == 1
    assert "1 line was skipped, the first: line 2 of chats.jsonl: it is not JSON" in ended.err
    with np.load(result["bitmaps"], allow_pickle=False) as archive:
        assert len(archive["fired_TLB"]) == result["tokens"]


def test_text_of_its_own(run: Run, model: Path, tmp_path: Path) -> None:
    argv = ["profile", str(model), "--self", "--max-tokens", "200", "--seed", "3"]
    ended = run(*argv, "--temperature", "0.8", "--out", str(tmp_path / "out"), "--json")
    assert ended.code == 0, ended.err
    result = last_line(ended.out)
    assert result["sampled"] == str(tmp_path / "out" / "sampled.jsonl")
    lines = Path(result["sampled"]).read_text().splitlines()
    assert sum(json.loads(line)["tokens"] for line in lines) >= 200
    again = ["profile", str(model), "--text", result["sampled"], "--out", str(tmp_path / "b")]
    ended = run(*again, "--against", str(tmp_path / "out"))
    assert ended.code == 0 and "100.0% of the hottest 20 %" in ended.out


def test_what_cannot_be_used_is_refused(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_bytes(b"")
    latin.write_bytes(b"caf\xe9 au lait")
    other = tmp_path / "other.npz"
    ActivationProfile(np.ones((5, 7), np.int64), 10).save(other)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(other.read_bytes()[:200])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("x")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "activations.npz").write_bytes(b"PK")
    out = f"--out {tmp_path / 'out'}"
    for argv, said in (
        (f"{out}", "either --text FILE"),
        (f"--text {text} --self {out}", "either --text FILE"),
        (f"--self --temperature 0 {out}", "temperature 0.0"),
        (f"--text {empty} {out}", "no text to profile"),
        (f"--text {latin} {out}", "not UTF-8: byte 0xe9 at offset 3"),
        (f"--text {text} {out} --against {other}", "profile is for 5 layers of 7"),
        (f"--text {text} {out} --against {cut}", "not a readable profile"),
        (f"--text {text} {out} --against {taken}", "holds no profile"),
        (f"--text {text} --out {taken}", "it has files but no activations.npz"),
        (f"--text {text} --out {wrong}", "that is not a profile"),
        (f"--text {text} --out {text}", "is a file"),
        (f"--text {text} {out} --context 65", "more than the 64 positions"),
        (f"--text {text} {out} --max-tokens 1", "no room for text"),
        (f"--text {text} {out} --context 1", "--context"),
    ):
        ended = run("profile", str(model), *argv.split())
        assert (ended.code, said in ended.err) == (2, True), ended.err
        assert only_line(ended.err) and not ended.out
        assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU asked for")
def test_a_gpu_that_is_not_there(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    argv = ["profile", str(model), "--text", str(text), "--out", str(tmp_path / "out")]
    ended = run(*argv, "--device", "cuda")
    assert ended.code == 2 and "use --device cpu" in only_line(ended.err)


def test_killed_in_the_middle_it_ends_the_same(run: Run, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text(STORY * 3000)  # some 190,000 tokens, more than 20 units
    argv = ["profile", str(model), "--text", str(text), "--bitmaps", "--device", "cpu"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "hotcold.actors.cli.main", *argv, "--out", str(killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ,
    )
    state, deadline = killed / ".profiling" / "state.npz", time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and state.exists()
    ended = run(*argv, "--out", str(killed), "--json")
    assert ended.code == 0, ended.err
    result = last_line(ended.out)
    assert 0 < result["resumed_tokens"] < result["tokens"]
    assert run(*argv, "--out", str(whole)).code == 0
    for name in ("activations.npz", "bitmaps.npz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == ["activations.npz", "bitmaps.npz"]
