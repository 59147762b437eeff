"""`hotcold pictures`: of the embedded model, of a profile just made, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, only_line
from support.models import TinyLlama, write_llama

from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_file import save_predictors
from hotcold.runtime.profiles.profile import ActivationProfile

pytest.importorskip("matplotlib", reason="pictures need matplotlib")
NAMES = ["activation_share.png", "sparsity.png", "predictor_size.png", "recall_density.png"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "model", TinyLlama())


@pytest.fixture
def profile(model: Path, tmp_path: Path) -> Path:
    bundle = resolve_model(model)
    counts = np.random.default_rng(0).integers(0, 90, (2, 48))
    folder = tmp_path / "run"
    folder.mkdir()
    made = ActivationProfile(counts.astype(np.int64), 100, bundle.checksum, "book.txt")
    made.save(folder / "activations.npz")
    return folder


def predictors(folder: Path, layers: int = 2) -> Path:
    rng = np.random.default_rng(0)
    points = json.dumps([[0.9, 0.5, 0.2], [0.95, 0.0, 0.3]])
    made = [
        PredictorLayer(
            rng.standard_normal((8 + 8 * i, 32)).astype(np.float16),
            rng.standard_normal((48, 8 + 8 * i)).astype(np.float16),
            None,
            True,
            0.0,
            "normed",
        )
        for i in range(layers)
    ]
    folder.mkdir(exist_ok=True)
    notes = {f"layers.{i}.calibration": points for i in range(layers)}
    save_predictors(folder / "predictors.safetensors", made, notes)
    return folder


def report(folder: Path, **layer: Any) -> None:
    rows = [{"recall": 0.94, "density": 0.31, **layer}] * 2
    (folder / "predictors.json").write_text(json.dumps({"layers": rows}))


def test_the_embedded_model_needs_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    ended = run("pictures", "--out", str(out), "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert result["page"] == str(out / "pictures.html")
    assert result["pictures"][:2] == [str(out / name) for name in NAMES[:2]]
    assert ended.out.splitlines()[:-1] == [*result["pictures"], result["page"]]
    assert {path.name for path in out.iterdir()} == {
        "pictures.html",
        *(Path(path).name for path in result["pictures"]),
    }


def test_a_profile_and_predictors(run: Run, model: Path, profile: Path) -> None:
    predictors(profile)
    argv = ["pictures", str(model), "--profile", str(profile), "--predictors", str(profile)]
    ended = run(*argv, "--out", str(profile), "--json")  # beside what it draws
    assert ended.code == 0, ended.err
    assert [Path(p).name for p in json.loads(ended.out.splitlines()[-1])["pictures"]] == NAMES
    plain = (profile / NAMES[3]).read_bytes()
    assert "book.txt" in (profile / "pictures.html").read_text()
    report(profile)
    assert run(*argv, "--out", str(profile)).code == 0
    assert (profile / NAMES[3]).read_bytes() != plain, "what was measured is not shown"
    assert "31.0%" in (profile / "pictures.html").read_text()


def test_what_cannot_be_used_is_refused(
    run: Run, model: Path, profile: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    ActivationProfile(np.ones((2, 48), np.int64), 9, "f" * 64).save(foreign / "activations.npz")
    deep = predictors(tmp_path / "deep", layers=3)
    odd = predictors(tmp_path / "odd")
    out = ["--out", str(tmp_path / "out")]
    given = ["--profile", str(profile)]
    for argv, said in (
        (out, "the model has no profile"),
        ([*given, "--out", str(taken)], "is a file"),
        (["--profile", str(foreign), *out], "counted with another model (ffffffffffff"),
        (["--profile", str(tmp_path), *out], "holds no profile"),
        ([*given, "--predictors", str(tmp_path / "model"), *out], "no predictors at"),
        ([*given, "--predictors", str(deep), *out], "belong to another model"),
    ):
        ended = run("pictures", str(model), *argv)
        assert (ended.code, said in only_line(ended.err)) == (2, True), ended.err
        assert not (tmp_path / "out").exists()
    for content, said in (
        ("{", "not valid JSON"),
        ("{}", "not a report of training"),
        ('{"layers": [1, 2]}', "not a report of training"),
        ('{"layers": []}', "reports 0 layers, the model has 2"),
    ):
        (odd / "predictors.json").write_text(content)
        ended = run("pictures", str(model), *given, "--predictors", str(odd), *out)
        assert (ended.code, said in only_line(ended.err)) == (2, True), ended.err
    report(odd, recall=7)
    ended = run("pictures", str(model), *given, "--predictors", str(odd), *out)
    assert ended.code == 2 and "or damaged" in ended.err
    assert not (tmp_path / "out").exists()
