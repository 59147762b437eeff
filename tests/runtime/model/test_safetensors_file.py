"""Safetensors files: read as the library reads them, and never believed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.models import (
    TinyLlama,
    random_tensors,
    write_llama,
    write_safetensors,
    write_sharded,
)

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.checkpoints.huggingface import Checkpoint
from hotcold.runtime.model.checkpoints.safetensors_file import TensorReader

SHAPES = [
    TinyLlama(),
    TinyLlama(d=45, layers=1, neurons=33, heads=5, kv_heads=1, head_dim=6, vocab=7),
    TinyLlama(d=36, neurons=1, heads=6, kv_heads=6, tied=True, shards=3, new_keys=True),
    TinyLlama(d=2, layers=3, neurons=2, heads=1, kv_heads=1, vocab=1, context=1, shards=2),
]


def refuse(folder: Path, *words: str) -> str:
    """The one sentence a folder is refused with; it must hold the words."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 900
    for word in words:
        assert word in text, text
    return text


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model", SHAPES)
def test_reader_agrees_with_the_safetensors_library(
    tmp_path: Path, model: TinyLlama, dtype: str
) -> None:
    folder = write_llama(tmp_path, replace(model, dtype=dtype))
    reader = TensorReader(folder)
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                expected = file.get_tensor(name).view(torch.uint8).numpy()
                np.testing.assert_array_equal(reader.rows(name).view(np.uint8), expected)
                names.add(name)
    assert names == set(reader.tensors)
    spec = Checkpoint(folder).spec
    assert (spec.dtype, spec.tied, spec.head_dim) == (dtype, model.tied, model.head)
    assert (spec.d_model, spec.n_neurons, spec.vocab_size) == (model.d, model.neurons, model.vocab)


def test_unknown_weight_dtype(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    raw: dict[str, Any] = dict(random_tensors(TinyLlama()))
    raw["lm_head.weight"] = raw["lm_head.weight"].astype(np.uint8)
    write_safetensors(folder / "model.safetensors", raw, {"lm_head.weight": "F8_E4M3"})
    refuse(folder, "lm_head.weight", "F8_E4M3", "BF16")


@pytest.mark.parametrize("keep", [0, 3, 8, 20, 5000, -1])
def test_truncated_safetensors(tmp_path: Path, keep: int) -> None:
    path = write_llama(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuse(tmp_path, "model.safetensors", "truncated", "download it again")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 10_000_000])
def test_absurd_header_length(tmp_path: Path, length: int) -> None:
    path = write_llama(tmp_path) / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refuse(tmp_path, "model.safetensors", str(length))


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 50_000,
        {"t": 1},
        {"t": entry(shape=[-2])},
        {"t": entry(shape=[True])},
        {"t": entry(shape=[2.0])},
        {"t": entry(shape=2)},
        {"t": entry(shape=[1] * 99)},
        {"t": entry(shape=[10**30, 10**30])},
        {"t": entry(shape=[3])},
        {"t": entry(data_offsets=[0])},
        {"t": entry(data_offsets=[8, 0])},
        {"t": entry(data_offsets=[-8, 0])},
        {"t": entry(data_offsets=["0", "8"])},
        {"t": entry(data_offsets=[0, 10**30])},
        {"t": entry(dtype=["F32"])},
    ],
)
def test_headers_that_cannot_be_right(tmp_path: Path, header: Any) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    refuse(tmp_path, "'t'" if isinstance(header, dict) else "header")


def test_shards_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "m", TinyLlama(shards=2))
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    outside = tmp_path / "model-00001-of-00002.safetensors"
    (folder / outside.name).rename(outside)
    refuse(folder, outside.name, "missing")
    for file in (f"../{outside.name}", str(outside), "..", "", ".", "a/b", "a\\b", "a\0b", 7, None):
        bad = {**good, "weight_map": {**good["weight_map"], "lm_head.weight": file}}
        index.write_text(json.dumps(bad))
        refuse(folder, "lm_head.weight", "inside")
    for broken in ({}, {"weight_map": []}, {"weight_map": {}}):
        index.write_text(json.dumps(broken))
        refuse(folder, "weight_map")


def test_index_and_shard_disagree(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, TinyLlama(shards=2))
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    files = sorted(set(data["weight_map"].values()))
    data["weight_map"]["lm_head.weight"] = files[data["weight_map"]["lm_head.weight"] == files[0]]
    index.write_text(json.dumps(data))
    refuse(folder, "lm_head.weight", "does not hold it")


def test_a_file_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = write_llama(tmp_path) / "model.safetensors"
    checkpoint = Checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match=r"changed while it was read"):
        list(checkpoint.tensor("head"))


def test_sharded_writer_covers_everything(tmp_path: Path) -> None:
    """The helper itself: more shards than tensors of a kind still hold each tensor once."""
    tensors = random_tensors(TinyLlama())
    write_sharded(tmp_path, tensors, 5)
    assert set(TensorReader(tmp_path).tensors) == set(tensors)
