"""PowerInfer's model_{i}.pt: read as our own files are; anything but plain tensors is refused."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.models import TinyLlama, write_llama
from support.predictors import random_oracle, spec_of, view_of

from hotcold.native.errors import CheckpointError
from hotcold.policies.predictor.learned import Learned
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.predictors.predictor_choice import choose_predictor
from hotcold.runtime.predictors.predictor_file import load_predictors

ORACLE = random_oracle()
SPEC = spec_of(ORACLE)  # 2 layers, d 24, 40 neurons


def state(index: int = 0, neurons: int = 40, d: int = 24, **changes: Any) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(index)
    width = 5 + 2 * index
    good = {
        "fc1.weight": torch.randn(width, d, generator=draw),
        "fc2.weight": torch.randn(neurons, width, generator=draw),
    }
    merged = {**good, **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "predictors"
    found.mkdir()
    for index in range(2):
        torch.save(state(index), found / f"model_{index}.pt")
    return found


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_predictors(folder, SPEC)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text
    return text


def test_layers_are_what_was_saved(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"sparse_threshold": -0.5}))
    found = load_predictors(folder, SPEC)
    assert found.density_L == (None, None)
    x_BD = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    for index, layer in enumerate(found.layers):
        saved = state(index)
        hidden = torch.relu(torch.from_numpy(x_BD) @ saved["fc1.weight"].T)
        want = hidden @ saved["fc2.weight"].T
        np.testing.assert_allclose(layer.scores(x_BD), want.numpy(), atol=1e-4)
        assert (layer.threshold, layer.input, layer.relu) == (-0.5, "residual", True)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module."])
def test_wrapped_and_of_other_dtypes(folder: Path, wrap: str) -> None:
    for index, dtype in enumerate((torch.float16, torch.bfloat16)):
        inner = {name: value.to(dtype) for name, value in state(index).items()}
        whole = {wrap + name: value for name, value in inner.items()}
        torch.save(
            whole if wrap.endswith(".") else {wrap: inner, "epoch": 3}, folder / f"model_{index}.pt"
        )
    half, brain = load_predictors(folder, SPEC).layers
    assert half.fc1 is not None and half.fc1.dtype == np.float16
    assert brain.fc1 is not None and brain.fc1.dtype == np.float32
    assert load_predictors(folder, SPEC).layers[0].threshold == 0.0


def test_the_older_format_of_torch_is_read(folder: Path) -> None:
    torch.save(state(0), folder / "model_0.pt", _use_new_zipfile_serialization=False)
    assert len(load_predictors(folder, SPEC).layers) == 2


def test_such_a_folder_is_a_predictor(folder: Path, tmp_path: Path) -> None:
    bundle: Any = SimpleNamespace(spec=SPEC, predictors_path=None, profile_path=None)
    predictor = choose_predictor(folder, bundle)
    assert predictor == Learned(path=str(folder))
    predictor.prepare(view_of(ORACLE), None)
    assert predictor.native(1).input == "residual"
    (tmp_path / "mine").mkdir()
    write_llama(tmp_path / "mine", TinyLlama(d=24, neurons=40, heads=3, kv_heads=3))
    prepared = prepare_model(EngineConfig(model=tmp_path / "mine", predictor=str(folder)))
    with LocalSession(deploy(prepared, solve(prepared))) as session:
        _, masks_TLN = session.logits([5, 6, 7])
    assert 0 < masks_TLN.mean() < 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fc1__weight": torch.ones(5, 23)}, r"'fc1.weight' has shape [5, 23], expected [H, 24]"),
        ({"fc2__weight": torch.ones(5, 40)}, r"'fc2.weight' has shape [5, 40], expected [40, 5]"),
        ({"fc1__weight": torch.ones(0, 24)}, "expected [H, 24]"),
        ({"fc1__weight": torch.ones(24)}, "has shape [24]"),
        ({"fc2__weight": None}, "no tensor 'fc2.weight'"),
        ({"fc2__weight": [1.0]}, "type list for 'fc2.weight'"),
        ({"fc2__weight": torch.ones(40, 5).double()}, "torch.float64"),
        ({"fc2__weight": torch.ones(40, 5).to_sparse()}, "torch.sparse_coo"),
        ({"fc2__weight": torch.full((40, 5), torch.nan)}, "200 values that are not finite"),
        ({"fc1__bias": torch.ones(5)}, "an entry 'fc1.bias'"),
        ({"fc1__weight": torch.ones(1, 1).expand(4096, 24)}, "more values than the file holds"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, change: dict[str, Any], says: str) -> None:
    torch.save(state(0, **change), folder / "model_0.pt")
    assert says in refused(folder)


class Boom:
    """Unpickled by someone careless, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for whole in (state(0, note=Boom(mark)), Boom(mark)):
        for modern in (True, False):
            torch.save(whole, folder / "model_0.pt", _use_new_zipfile_serialization=modern)
            text = refused(folder)
            assert "model_0.pt" in text and "nothing in it was executed" in text
            assert not mark.exists()
    (folder / "model_0.pt").write_bytes(pickle.dumps(Boom(mark)))
    refused(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Boom(mark)))
    assert mark.exists(), "this pickle does nothing; the test shows nothing"


def test_files_that_are_no_predictors(folder: Path) -> None:
    whole = (folder / "model_1.pt").read_bytes()
    for data in (b"", b"PK\x03\x04", whole[: len(whole) // 2], bytes(1000), b"hello"):
        (folder / "model_1.pt").write_bytes(data)
        assert "model_1.pt" in refused(folder)
    torch.save([1, 2], folder / "model_1.pt")
    assert "holds type list" in refused(folder)
    with zipfile.ZipFile(folder / "model_1.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model_1/data.pkl", bytes(1 << 20))
    assert "unfolds to 1048576 bytes" in refused(folder)
    torch.save(torch.nn.Linear(2, 2), folder / "model_1.pt")
    assert "nothing in it was executed" in refused(folder)


def test_layers_missing_and_layers_too_many(folder: Path) -> None:
    torch.save(state(2), folder / "model_2.pt")
    assert "has a file model_2.pt; the model has 2 layers" in refused(folder)
    (folder / "model_2.pt").unlink()
    (folder / "model_0.pt").unlink()
    assert "has no file model_0.pt" in refused(folder)


@pytest.mark.parametrize("text", ["[", '{"sparse_threshold": "much"}', '{"sparse_threshold": NaN}'])
def test_a_config_that_says_no_number(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json" in refused(folder)
