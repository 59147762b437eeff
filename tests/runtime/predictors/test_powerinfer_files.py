"""PowerInfer's files: what is written reads back to the same model, predictors, counts and plan."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.planted import options

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.engine.deployment import solve
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import Bundle, open_bundle, resolve_model
from hotcold.runtime.offline.plant.making import plant
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.predictors.powerinfer_files import (
    FILE,
    INDEX,
    export_gguf,
    export_powerinfer,
    read_gpu_index,
)
from hotcold.runtime.predictors.predictor_file import load_predictors
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("powerinfer")


@pytest.fixture(scope="module")
def planted(folder: Path) -> Bundle:
    return open_bundle(plant(options("tiny"), folder / "bundle", device="cpu").path)


@pytest.fixture(scope="module")
def source(folder: Path) -> Bundle:
    """Of PowerInfer's own form: its predictors read the residual stream."""
    made = plant(options("tiny"), folder / "planted", form="powerinfer-gguf", device="cpu")
    return resolve_model(made.path / FILE, cache=folder / "c")


@pytest.fixture(scope="module")
def vram(source: Bundle) -> str:
    """An amount for all but 100 neurons."""
    whole = solve(prepare_model(EngineConfig(model=source.path, vram="1MiB")))
    return f"{whole.bytes_by_device['gpu0'] - 100 * source.record.bytes}B"


@pytest.fixture(scope="module")
def plan(source: Bundle, vram: str) -> Plan:
    return solve(prepare_model(EngineConfig(model=source.path, vram=vram)))


@pytest.fixture(scope="module")
def exported(source: Bundle, plan: Plan, folder: Path) -> Path:
    export_gguf(source, folder / "out", powerinfer=True, plan=plan)
    return folder / "out"


def same_model(made: Bundle, source: Bundle) -> None:
    """Weights, predictors and counts: so tokens and plans, too, are the same."""
    assert made.weights_path.read_bytes() == source.weights_path.read_bytes()
    ids = {"bos_ids": (), "eos_ids": ()}
    assert replace(made.spec, **ids) == replace(source.spec, **ids)
    found = [load_predictors(one.path, one.spec) for one in (made, source)]
    for a, b in zip(*(one.layers for one in found), strict=True):
        assert (a.threshold, a.input) == (pytest.approx(b.threshold), "residual")
        for mine, theirs in ((a.fc1, b.fc1), (a.fc2, b.fc2)):
            assert mine is not None and theirs is not None
            np.testing.assert_array_equal(mine, theirs)
    profiles = [ActivationProfile.load(one.profile_path or "") for one in (made, source)]
    np.testing.assert_array_equal(profiles[0].counts_LN, profiles[1].counts_LN)


def test_what_is_exported_reads_back(exported: Path, source: Bundle, folder: Path) -> None:
    assert (exported / FILE).read_bytes()[:4] == b"PWRI"
    same_model(resolve_model(exported, cache=folder / "c"), source)


def test_what_is_planted_reads_back(source: Bundle, planted: Bundle) -> None:
    same_model(source, planted)
    words, theirs = Tokenizer.load(source.path), Tokenizer.load(planted.path)
    for text in ("Hello,  \u00fcber\n 1", " a", ""):
        assert words.encode(text) == theirs.encode(text)
        assert words.decode(words.encode(text)) == text
    assert words.vocab_size == theirs.vocab_size


def test_an_index_becomes_the_plan_it_was_made_of(
    exported: Path, source: Bundle, plan: Plan, vram: str
) -> None:
    index = exported / f"{FILE}{INDEX}"
    assert 0 < (plan.device_LN == 0).sum() < plan.device_LN.size
    np.testing.assert_array_equal(read_gpu_index(index), plan.device_LN == 0)
    assert b"\x12\0\0\0" in index.read_bytes()  # PowerInfer's id of int32, 18
    config = EngineConfig(
        model=source.path,
        vram=vram,
        policy="powerinfer-index",
        settings={"file": str(index)},
    )
    again = solve(prepare_model(config))
    np.testing.assert_array_equal(again.device_LN, plan.device_LN)
    assert again.modules == plan.modules


def test_an_index_of_another_model_or_damaged_is_refused(exported: Path, tmp_path: Path) -> None:
    raw = (exported / f"{FILE}{INDEX}").read_bytes()
    bad = tmp_path / "bad.gpuidx"
    bad.write_bytes(raw[:-64] + b"\x07" * 64)
    with pytest.raises(CheckpointError, match="contradict each other"):
        read_gpu_index(bad)
    with pytest.raises(CheckpointError, match="no index"):
        read_gpu_index(exported / FILE)


def test_predictors_that_powerinfer_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="biases|no predictors"):
        export_powerinfer(resolve_model(None, "float16"), tmp_path)
    with pytest.raises(ConfigError, match="no empty folder"):
        export_gguf(resolve_model(), Path(__file__).parent, powerinfer=False)
