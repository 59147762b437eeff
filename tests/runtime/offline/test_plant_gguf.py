"""GGUF that is planted: the same numbers as the bundle's when read back, in llama.cpp's layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.planted import options

from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.offline.plant.making import PlantReport, plant
from hotcold.runtime.predictors.predictor_file import load_predictors
from hotcold.runtime.profiles.activation_pt import find_counts, read_counts
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.gguf import write_gguf
from hotcold.runtime.weights.weights import WeightStore

gguf = pytest.importorskip("gguf", reason="the extra `rivals` is not installed")


def read(path: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    """Tensors in their rows' shape, and the reader."""
    reader = gguf.GGUFReader(path)
    return {one.name: np.array(one.data) for one in reader.tensors}, reader


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> PlantReport:
    return plant(options("tiny"), tmp_path_factory.mktemp("planted") / "bundle", device="cpu")


def test_it_is_what_a_bundle_becomes(bundle: PlantReport, tmp_path: Path) -> None:
    made = plant(options("tiny"), tmp_path / "out", form="gguf", device="cpu")
    assert {path.name for path in made.path.iterdir()} >= {"model.gguf", "tokenizer.json"}
    assert not (made.path / "predictors.safetensors").exists()
    tensors, reader = read(made.path / "model.gguf")
    write_gguf(open_bundle(bundle.path), tmp_path / "converted.gguf")
    expected, _ = read(tmp_path / "converted.gguf")
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert tensors[name].dtype == values.dtype
        np.testing.assert_array_equal(tensors[name], values)
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(words) == made.spec.vocab_size
    assert words[:3] == ["<unk>", "<s>", "</s>"]
    letters = {f"<0x{byte:02X}>" for byte in range(256) if byte != 0x20}
    assert {*letters, "\u2581"} == set(words[3:259])
    assert made.checksum == ""


def test_powerinfers_has_predictors_rows_of_down_and_counts(
    bundle: PlantReport, tmp_path: Path
) -> None:
    made = plant(options("tiny"), tmp_path / "out", form="powerinfer-gguf", device="cpu")
    path = made.path / "model.powerinfer.gguf"
    raw = path.read_bytes()
    assert raw[:4] == b"PWRI"
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(b"GGUF" + raw[4:])
    tensors, reader = read(plain)
    ours = open_bundle(bundle.path)
    predictors = load_predictors(bundle.path / "predictors.safetensors", ours.spec)
    record = ours.record
    with WeightStore.open(ours) as store:
        for layer in range(ours.spec.n_layers):
            records = store.array(f"layers.{layer}.neurons")
            for name, part in zip(("gate", "up", "down_t"), record.parts, strict=True):
                rows = np.ascontiguousarray(records[:, part.slice]).view(np.float16)
                np.testing.assert_array_equal(tensors[f"blk.{layer}.ffn_{name}.weight"], rows)
            for name in ("fc1", "fc2"):
                theirs = tensors[f"blk.{layer}.{name}.weight"]
                np.testing.assert_array_equal(theirs, getattr(predictors.layers[layer], name))
            assert f"blk.{layer}.ffn_down.weight" not in tensors
    threshold = reader.fields["powerinfer.sparse_threshold"].contents()
    assert threshold == pytest.approx(predictors.layers[0].threshold)
    counts_LN = read_counts(find_counts(made.path))
    assert ours.profile_path is not None
    profile = ActivationProfile.load(ours.profile_path)
    np.testing.assert_array_equal(counts_LN, profile.counts_LN)
