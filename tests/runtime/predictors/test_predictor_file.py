"""predictors.safetensors: round trips, and refusal of every file that does not fit the model."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.predictors import random_layers, random_oracle, spec_of

from hotcold.native.errors import CheckpointError
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_file import (
    FILE_NAME,
    load_predictors,
    predictor_costs,
    save_predictors,
)

SPEC = spec_of(random_oracle())  # 2 layers, d 24, 40 neurons


def tensors(**changes: Any) -> dict[str, torch.Tensor]:
    good = {
        f"layers.{i}.{name}": torch.ones(shape)
        for i in range(2)
        for name, shape in {"fc1": (5, 24), "fc2": (40, 5), "fc2.bias": (40,)}.items()
    }
    merged = {**good, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_predictors(path, SPEC)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(tmp_path: Path, dtype: str, bias: bool) -> None:
    layers = random_layers(SPEC, dtype=dtype, bias=bias)
    save_predictors(tmp_path / FILE_NAME, layers, {"layers.1.density": "0.25"})
    found = load_predictors(tmp_path, SPEC)
    assert found.density_L == (None, 0.25)
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]
    for have, want in zip(found.layers, layers, strict=True):
        assert (have.threshold, have.input, have.relu) == (want.threshold, want.input, True)
        for a, b in ((have.fc1, want.fc1), (have.fc2, want.fc2), (have.bias_N, want.bias_N)):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert a.dtype == b.dtype and a.flags.c_contiguous
                np.testing.assert_array_equal(a, b)


def test_bfloat16_becomes_float32_exactly(tmp_path: Path) -> None:
    values = torch.randn(5, 24).to(torch.bfloat16)
    path = tmp_path / "p.safetensors"
    save_file(tensors(layers__0__fc1=values), path)
    layer = load_predictors(path, SPEC).layers[0]
    assert layer.fc1 is not None and layer.fc2 is not None
    assert layer.fc1.dtype == layer.fc2.dtype == np.float32
    np.testing.assert_array_equal(layer.fc1, values.float().numpy())


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    notes = {"threshold": "0.5", "layers.1.threshold": "-2", "input": "residual"}
    save_file(tensors(), path, metadata=notes)
    layers = load_predictors(path, SPEC).layers
    assert [layer.threshold for layer in layers] == [0.5, -2.0]
    assert {layer.input for layer in layers} == {"residual"}


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ({"threshold": "nan"}, "threshold is 'nan'"),
        ({"layers.0.threshold": "high"}, "layers.0.threshold is 'high'"),
        ({"layers.1.density": "1.5"}, "layers.1.density is 1.5"),
        ({"input": "embedding"}, "input is 'embedding'"),
    ],
)
def test_bad_metadata(tmp_path: Path, notes: dict[str, str], says: str) -> None:
    path = tmp_path / "p.safetensors"
    save_file(tensors(), path, metadata=notes)
    assert says in refused(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers__1__fc2": None}, ["no tensor 'layers.1.fc2'", "2 layers"]),
        ({"layers__0__fc1": torch.ones(5, 25)}, ["'layers.0.fc1'", "[5, 25]", "[H, 24]"]),
        ({"layers__0__fc1": torch.ones(0, 24)}, ["'layers.0.fc1'", "[0, 24]", "[H, 24]"]),
        ({"layers__1__fc2": torch.ones(40, 6)}, ["'layers.1.fc2'", "[40, 6]", "[40, 5]"]),
        ({"layers__1__fc2": torch.ones(200)}, ["'layers.1.fc2'", "[200]", "[40, 5]"]),
        ({"layers__0__fc2__bias": torch.ones(41)}, ["'layers.0.fc2.bias'", "[41]", "[40]"]),
        ({"layers__0__fc1": torch.ones(5, 24).double()}, ["dtype F64", "F16, F32, BF16"]),
        ({"layers__0__fc1": torch.ones(5, 24, dtype=torch.int8)}, ["dtype I8"]),
        ({"layers__2__fc1": torch.ones(5, 24)}, ["unexpected tensor 'layers.2.fc1'"]),
        ({"layers__0__fc3": torch.ones(5)}, ["unexpected tensor 'layers.0.fc3'"]),
        ({"layers__1__fc1": torch.full((5, 24), float("nan"))}, ["'layers.1.fc1'", "120 values"]),
        ({"layers__1__fc2__bias": torch.full((40,), float("inf"))}, ["fc2.bias", "40 values"]),
    ],
)
def test_wrong_tensors(tmp_path: Path, changes: dict[str, Any], says: list[str]) -> None:
    path = tmp_path / "p.safetensors"
    save_file(tensors(**changes), path)
    message = refused(path)
    for part in says:
        assert part in message


def test_damaged_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(tensors(), whole)
    data = whole.read_bytes()
    path = tmp_path / "p.safetensors"
    damaged = {
        "empty": b"",
        "short": data[:5],
        "cut in the header": data[:40],
        "cut in the data": data[:-1],
        "absurd header size": struct.pack("<Q", 2**63) + data[8:],
        "header beyond the file": struct.pack("<Q", 10**7) + data[8:],
        "not json": data[:8] + b"x" * (len(data) - 8),
        "pickle": b"\x80\x04K\x01.",
    }
    said = {"empty": "is empty", "pickle": "is a pickle"}
    for kind, content in damaged.items():
        path.write_bytes(content)
        assert said.get(kind, "not a readable safetensors file") in refused(path)


def test_missing_file_and_empty_folder(tmp_path: Path) -> None:
    assert FILE_NAME in refused(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=FILE_NAME):
        load_predictors(tmp_path, SPEC)


def test_only_what_the_file_can_hold_is_saved(tmp_path: Path) -> None:
    layers = random_layers(SPEC)
    odd = PredictorLayer(None, None, None, False, 0.0)
    with pytest.raises(ValueError, match="layer 1"):
        save_predictors(tmp_path / FILE_NAME, [layers[0], odd])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n", "git lfs"),
        ("<html><body>Sign in</body></html>", "HTML page"),
        ("", "is empty"),
    ],
)
def test_predictors_that_were_not_downloaded(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(content)
    for read in (load_predictors, predictor_costs):
        with pytest.raises(CheckpointError, match=words) as caught:
            read(path, SPEC)
        assert str(path) in str(caught.value)
