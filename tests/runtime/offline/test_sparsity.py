"""`hotcold sparsity` against counts by hand: what fires, and what batches and thresholds need."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.cli_inputs import random_words
from support.tiny_models import NEMOTRON, SMOLLM2

from hotcold.actors.cli.offline.sparsity import command
from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.offline.profiling.counting import count_unit
from hotcold.runtime.offline.profiling.sparsity import ERRORS, measure_sparsity
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.weights.weights import WeightStore

WINDOWS = np.random.default_rng(0).integers(3, 300, (4, 40)).tolist()


def dense_model(folder: Path) -> DenseModel:
    bundle = resolve_model(folder)
    with WeightStore.open(bundle) as store:
        return DenseModel(bundle, store, 40)


def inputs(model: DenseModel) -> list[Any]:
    seen: list[Any] = []
    with torch.no_grad():
        model.hidden(torch.tensor(WINDOWS), lambda layer, x_RD, _: seen.append(x_RD.double()))
    return seen


def off(model: DenseModel, layer: int, x_RD: Any, threshold: float) -> tuple[float, float]:
    """Error of a layer's output behind a threshold, and the share of neurons below it; float64."""
    parts = {name: value.double() for name, value in model.layers[layer].items()}
    gate_RN = x_RD @ parts["gate"].T
    act_RN = (
        gate_RN.relu() ** 2 if model.spec.activation == "relu2" else gate_RN * gate_RN.sigmoid()
    )
    value_RN = act_RN * (x_RD @ parts["up"].T) if "up" in parts else act_RN
    below_RN = act_RN.abs() <= threshold
    norm = torch.linalg.norm
    error = norm((value_RN * below_RN) @ parts["down"]) / norm(value_RN @ parts["down"])
    return float(error), float(below_RN.double().mean())


def test_a_relu_models_zeros_are_counted(tmp_path: Path) -> None:
    model = dense_model(NEMOTRON["half of a head"].write(tmp_path))
    layers, tally = measure_sparsity(model, WINDOWS), count_unit(model, WINDOWS, 1)
    for index, layer in enumerate(layers):
        counts_N = np.sort(tally.counts_LN[index])[::-1]
        assert not layer.dense and layer.active == pytest.approx(layer.fires)
        assert layer.fires == pytest.approx(counts_N.mean() / 160)
        assert layer.never == (counts_N == 0).mean()
        hot = round(layer.hot80 * len(counts_N))
        assert counts_N[:hot].sum() >= 0.8 * counts_N.sum() > counts_N[: hot - 1].sum()
        assert layer.range90[0] < layer.fires < layer.range90[1] and 0 < layer.spread < 0.2
        assert layer.union[1] == pytest.approx(layer.fires)
        assert layer.union[1] < layer.union[8] < layer.union[32] <= 1 - layer.never
        assert 1 - layer.fires < layer.skipped[0.01] < layer.skipped[0.05] < layer.skipped[0.1] < 1


@pytest.mark.parametrize("tiny", [NEMOTRON["half of a head"], SMOLLM2], ids=["relu2", "silu"])
def test_thresholds_keep_their_word(tmp_path: Path, tiny: Any) -> None:
    """The layer is off by the error that was asked for, nearly, and not by more."""
    model = dense_model(tiny.write(tmp_path))
    layers = measure_sparsity(model, WINDOWS)
    for index, x_RD in enumerate(inputs(model)):
        for error in ERRORS:
            made, below = off(model, index, x_RD, layers[index].thresholds[error])
            assert 0.9 * error < made <= 1.001 * error
            assert layers[index].skipped[error] == pytest.approx(below, abs=1e-3)


def test_a_dense_model_is_called_one(tmp_path: Path) -> None:
    model = dense_model(SMOLLM2.write(tmp_path))
    for layer in measure_sparsity(model, WINDOWS):
        assert layer.dense and layer.fires == 1.0
        assert layer.active == pytest.approx(1 - layer.skipped[0.05])
        assert 0.02 < layer.active < 0.98 and layer.union[1] < layer.union[8]


def test_the_command_prints_draws_and_says_it_in_json(tmp_path: Path) -> None:
    text, out = random_words(tmp_path / "t.txt", 300), tmp_path / "s.png"
    args = ["--text", str(text), "--max-tokens", "64", "--context", "32"]
    done = CliRunner().invoke(command, [*args, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert out.read_bytes().startswith(b"\x89PNG")
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["layers"]) == 8 and result["tokens"] == 64
    assert result["layers"][3]["union"].keys() == {"1", "8", "32"}
    assert "of the neurons fire for a token (relu, 64 tokens)" in done.stdout
    for wrong, words in (
        (["--out", str(tmp_path / "no" / "s.png")], "there is no folder"),
        (["--context", "100000"], "--context 100000 is more than the"),
    ):
        refused = CliRunner().invoke(command, [*args, *wrong])
        assert isinstance(refused.exception, ConfigError) and words in str(refused.exception)
