"""`hotcold train-predictors` and `hotcold evaluate`: one after the other, and what they refuse."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.cli_inputs import profiled_llama, random_words
from support.command import Run

from hotcold.actors.cli.offline import train_predictors
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.predictors.predictor_file import load_predictors
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.text.tokenizer import Tokenizer
from hotcold.runtime.text.windows import token_windows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return profiled_llama(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return random_words(tmp_path / "book.txt", 6000)


def test_trained_predictors_are_used_and_judged(
    run: Run, model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = f"train-predictors {model} --text {text} --out {out} --max-tokens 4096 --share 0.4"
    ended = run(*f"{argv} --perplexity 0 --json".split())
    assert ended.code == 0, ended.err
    report = json.loads(ended.out.splitlines()[-1])
    assert report["recall"] == pytest.approx(0.95, abs=0.05)
    assert len(report["layers"]) == 2
    assert {"width", "bytes", "recall", "precision", "density", "cosine_loss"} <= set(
        report["layers"][0]
    )
    assert json.loads((out / "predictors.json").read_text())["recall"] == report["recall"]
    assert 0 < report["predict_time_share"] < 1 and report["decode_tokens_per_s"] > 0
    assert 0 < report["parameter_share"] <= 0.4
    argv = f"evaluate {model} --text {text} --max-tokens 256 --decode 4 --predictor {out} --json"
    ended = run(*argv.split())
    assert ended.code == 0, ended.err
    found = json.loads(ended.out.splitlines()[-1])
    assert found["perplexity_ratio"] == pytest.approx(
        found["perplexity"] / found["perplexity_dense"]
    )
    assert found["recall"] == pytest.approx(0.95, abs=0.05)
    assert found["recall_standard_error"] > 0
    assert found["density"] >= found["density_fired"] * found["recall"]
    assert found["decode_tokens_per_s"] > 0 and 0 < found["predict_time_share"] < 1
    shutil.copy(out / "predictors.safetensors", model)
    ended = run(*f"evaluate {model} --text {text} --max-tokens 128 --decode 0".split())
    assert ended.code == 0 and "feed-forward weights a token" in ended.out
    assert "decode" not in ended.out
    guessing = f"evaluate {model} --text {text} --predictor learned --json"
    ended = run(*f"{guessing} --audit-runs 3".split())
    assert ended.code == 0 and "of 3 intervals contain it" in ended.out
    assert json.loads(ended.out.splitlines()[-1])["every"] == 256
    ended = run(*f"{guessing} --max-tokens 64 --sweep".split())
    assert ended.code == 0, ended.err
    curve = json.loads(ended.out.splitlines()[-1])
    assert curve["points"][0]["setting"] == "own thresholds"
    assert 0 < curve["parameter_share"] <= 0.4


def test_windows_to_train_calibrate_and_report_on_are_apart(text: Path, model: Path) -> None:
    parts = train_predictors._windows(
        model,
        {"texts": (text,), "calibrate": (), "report": (), "max_tokens": 4096},
        64,
    )
    tokenizer = Tokenizer.load(model)
    whole = [window for window, _ in token_windows([text], tokenizer, 64, 4096)]
    seen = [{tuple(window) for window in part} for part in parts]
    assert all(seen) and len(parts[0]) >= 5 * len(parts[1])
    for part in parts[1:]:  # of neighbours: none of them stands between two that are trained on
        assert len(part) * 64 * 8 <= 4096
        places = [whole.index(window) for window in part]
        assert places == list(range(places[0], places[0] + len(part)))
    for one in range(3):
        assert not seen[one] & seen[(one + 1) % 3]


def test_a_killed_training_goes_on_where_it_was(model: Path, text: Path, tmp_path: Path) -> None:
    """At most the layer under way is lost."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hotcold.actors.cli.main", "train-predictors", str(model)]
    command += ["--text", str(text), "--out", str(out), "--max-tokens", "4096", "--threads", "1"]
    command += ["--share", "0.4", "--perplexity", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("layer 1"):
            break
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -9 and not (out / "predictors.safetensors").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert "layer 0: done before" in again.stderr  # layer 1 may have been saved or not
    assert load_predictors(out, resolve_model(model).spec).layers


def test_what_cannot_be_used_is_refused(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_bytes(b"")
    latin.write_bytes(b"caf\xe9 au lait " * 50)
    other = tmp_path / "other.npz"
    ActivationProfile(np.ones((5, 7), np.int64), 10).save(other)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(other.read_bytes()[:200])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("x")
    out = tmp_path / "out"
    for argv, said in (
        (f"--text {empty} --out {out}", "no text"),
        (f"--text {latin} --out {out}", "not UTF-8"),
        (f"--text {text} --out {out} --profile {other}", "5 layers of 7"),
        (f"--text {text} --out {out} --profile {cut}", "not a readable profile"),
        (f"--text {text} --out {taken}", "thesis.tex"),
        (f"--text {text} --out {text}", "is a file"),
        (f"--text {text} --out {out} --recall 2", "recall 2.0"),
        (f"--text {text} --out {out} --max-tokens 64", "windows"),
        (f"--text {text} --out {out} --lookahead 2", "lookahead 2"),
        (f"--text {text} --out {out} --report {text}", "--text (as "),
        (f"--text {text} --out {out} --calibrate {other} --report {other}", "--calibrate (as "),
    ):
        ended = run("train-predictors", str(model), *argv.split())
        assert (ended.code, said in ended.err) == (2, True), ended.err
    for path, said in ((empty, "no text"), (latin, "not UTF-8")):
        ended = run("evaluate", str(model), "--text", str(path))
        assert (ended.code, said in ended.err) == (2, True), ended.err
