"""Bundles: bit for bit what the checkpoint holds, made once, never half, rebuilt when damaged."""

import hashlib
import json
import logging
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from support.models import (
    TinyLlama,
    random_tensors,
    to_raw,
    write_llama,
    write_safetensors,
)

from hotcold.native.errors import CheckpointError
from hotcold.runtime import embedded
from hotcold.runtime.files.npz import pack
from hotcold.runtime.model.checkpoints import bundle
from hotcold.runtime.model.checkpoints.bundle import Bundle, open_bundle, resolve_model
from hotcold.runtime.model.checkpoints.convert import header_digest
from hotcold.runtime.model.checkpoints.digest import file_digest
from hotcold.runtime.model.checkpoints.layout import layout
from hotcold.runtime.model.neurons import ROWS, NeuronRecord, Part

ODD = TinyLlama(d=45, layers=3, neurons=33, heads=5, kv_heads=1, head_dim=6, vocab=7)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "source", TinyLlama(dtype="float16"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def raw_tensor(made: Bundle, name: str) -> np.ndarray[Any, Any]:
    """Bytes of a tensor, rows first, read without the code under test."""
    entry = made.tensors[name]
    data = made.weights_path.read_bytes()[entry.offset : entry.offset + entry.size]
    return np.frombuffer(data, np.uint8).reshape(entry.shape[0], -1)


def as_bytes(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(raw).view(np.uint8).reshape(raw.shape[0], -1)


def check_neurons(made: Bundle, layer: int, parts: list[np.ndarray[Any, Any]]) -> None:
    """Records hold gate, up and down columns (all [N, D] raw) side by side, then zeros."""
    records, row = raw_tensor(made, f"layers.{layer}.neurons"), made.record.part("up").offset
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(records[:, i * row : (i + 1) * row], as_bytes(part))
    assert not records[:, 3 * row :].any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("model", [ODD, TinyLlama(tied=True, shards=2), TinyLlama(d=1000, heads=4)])
def test_every_bit_of_the_checkpoint(
    tmp_path: Path, cache: Path, model: TinyLlama, dtype: str
) -> None:
    model = replace(model, dtype=dtype)
    made = resolve_model(write_llama(tmp_path / "m", model), cache=cache)
    raw = {name: to_raw(value, dtype) for name, value in random_tensors(model).items()}
    assert made.name == "m" and made.source == str(tmp_path / "m") and made.spec.dtype == dtype
    assert ("head" in made.tensors) is not model.tied
    for name, entry in made.tensors.items():
        assert entry.offset % (4096 if name.endswith("neurons") else 64) == 0
    np.testing.assert_array_equal(
        raw_tensor(made, "embed"), as_bytes(raw["model.embed_tokens.weight"])
    )
    if not model.tied:
        np.testing.assert_array_equal(raw_tensor(made, "head"), as_bytes(raw["lm_head.weight"]))
    for i in range(model.layers):
        p = f"model.layers.{i}"
        qkv = np.concatenate([raw[f"{p}.self_attn.{x}_proj.weight"] for x in "qkv"])
        np.testing.assert_array_equal(raw_tensor(made, f"layers.{i}.qkv"), as_bytes(qkv))
        o = raw[f"{p}.self_attn.o_proj.weight"]
        np.testing.assert_array_equal(raw_tensor(made, f"layers.{i}.o"), as_bytes(o))
        parts = [raw[f"{p}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")]
        check_neurons(made, i, [*parts[:2], parts[2].T])
        assert made.tensors[f"layers.{i}.ffn_norm"].dtype == "float32"


def test_the_whole_embedded_model(cache: Path) -> None:
    made = resolve_model(cache=cache)
    assert made.spec.n_layers == 8 and made.profile_path is not None
    assert made.predictors_path is not None and (made.path / "tokenizer.json").is_file()
    with safe_open(embedded.path() / "model.safetensors", "np") as file:
        for i in range(8):
            p = f"model.layers.{i}"
            names = [f"{p}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
            gate, up, down = (file.get_tensor(name) for name in names)
            check_neurons(made, i, [gate, up, down.T])
            norm = file.get_tensor(f"{p}.input_layernorm.weight").astype(np.float32)
            got = raw_tensor(made, f"layers.{i}.attention_norm")
            np.testing.assert_array_equal(got, as_bytes(norm))
        embed = file.get_tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(raw_tensor(made, "embed"), as_bytes(embed))
    for name in ("tokenizer.json", "activations.npz", "generation_config.json"):
        assert (made.path / name).read_bytes() == (embedded.path() / name).read_bytes()


def test_layout_has_no_overlap_and_follows_from_the_spec(source: Path, cache: Path) -> None:
    made = resolve_model(source, cache=cache)
    tensors, size = layout(made.spec)
    assert (
        tensors == made.tensors and size == made.weights_bytes == made.weights_path.stat().st_size
    )
    ends = [(entry.offset, entry.offset + entry.size) for entry in tensors.values()]
    assert all(a[1] <= b[0] for a, b in zip(ends, ends[1:], strict=False)) and ends[-1][1] <= size
    for d, row, length in ((32, 64, 192), (33, 66, 256)):
        record = NeuronRecord.for_spec(replace(made.spec, d_model=d))
        parts = [Part(name, made.spec.dtype, i * row, row) for i, name in enumerate(ROWS)]
        assert record == NeuronRecord(tuple(parts), length, d)
    assert made.record == NeuronRecord.for_spec(made.spec)


def no_reading(*arguments: object) -> str:
    raise AssertionError("weights were read or written again")


def test_the_second_start_reads_no_weights(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_model(source, cache=cache)
    monkeypatch.setattr(bundle, "file_digest", no_reading)
    monkeypatch.setattr(bundle, "write_bundle", no_reading)
    assert resolve_model(source, cache=cache) == first
    assert resolve_model(str(source), "float16", cache) == first  # its own dtype: no second copy
    assert resolve_model(first.path, cache=cache) == first == open_bundle(first.path)


def test_another_dtype_or_a_changed_source_is_another_bundle(source: Path, cache: Path) -> None:
    first = resolve_model(source, cache=cache)
    wide = resolve_model(source, "float32", cache)
    assert wide.path != first.path and wide.spec == replace(first.spec, dtype="float32")
    weights = source / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    again = resolve_model(source, cache=cache)
    assert again.path != first.path and again.checksum == first.checksum
    write_llama(source, TinyLlama(dtype="float16", seed=1))
    assert resolve_model(source, cache=cache).checksum != first.checksum


def test_the_checksum_names_the_model_not_the_place(tmp_path: Path, cache: Path) -> None:
    model = TinyLlama()
    a = resolve_model(write_llama(tmp_path / "a", model), cache=cache)
    b = resolve_model(write_llama(tmp_path / "b", replace(model, shards=3)), cache=cache)
    c = resolve_model(write_llama(tmp_path / "c", replace(model, rope_theta=2e4)), cache=cache)
    assert a.checksum == b.checksum != c.checksum


def flip(path: Path, at: int, mask: int = 1) -> None:
    """Flip bits in place, leaving size and modification time as they were."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change bundle.json and make its checksums right again: only the meaning is wrong."""
    header = json.loads(path.read_text())
    change(header)
    if header["checksum"] != "0" * 64:
        identity = [1, header["spec"], header["weights"]["sha256"]]
        text = json.dumps(identity, sort_keys=True)
        header["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    header["header_sha256"] = header_digest(header)
    path.write_text(json.dumps(header))


def set_in(*keys: str, to: object) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = to

    return change


def header_damage(*keys: str, to: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "bundle.json", set_in(*keys, to=to))


def add_foreign(folder: Path) -> None:
    """List a file outside the bundle, with its true size and checksum."""
    outside = folder / ".." / "outside"
    outside.write_bytes(b"x")
    file = {"bytes": 1, "sha256": file_digest(outside)}
    edit(folder / "bundle.json", set_in("files", "../outside", to=file))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped weight": lambda f: flip(f / "weights.bin", 5000),
    "flipped last byte": lambda f: flip(f / "weights.bin", (f / "weights.bin").stat().st_size - 1),
    "flipped tokenizer": lambda f: flip(f / "tokenizer.json", 60),
    "truncated": lambda f: os.truncate(f / "weights.bin", 5000),
    "empty": lambda f: os.truncate(f / "weights.bin", 0),
    "too long": lambda f: (f / "weights.bin").open("ab").write(b"x"),
    "no weights": lambda f: (f / "weights.bin").unlink(),
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "weights are a folder": lambda f: ((f / "weights.bin").unlink(), (f / "weights.bin").mkdir()),
    "bad JSON": lambda f: (f / "bundle.json").write_text("{"),
    "empty JSON": lambda f: (f / "bundle.json").write_text(""),
    "no object": lambda f: (f / "bundle.json").write_text("[]"),
    "flipped digit": lambda f: flip(f / "bundle.json", (f / "bundle.json").read_text().index("32")),
    "another format": header_damage("format", to="x"),
    "another version": header_damage("version", to=2),
    "absurd spec": header_damage("spec", "d_model", to=10**30),
    "no spec": header_damage("spec", to=None),
    "spec of a wrong type": header_damage("spec", "n_layers", to="2"),
    "odd head": header_damage("spec", "head_dim", to=7),
    "bad scaling": header_damage("spec", "rope_scaling", to={"rope_type": []}),
    "scaling of a wrong type": header_damage("spec", "rope_scaling", to=[3]),
    "bad dtype": header_damage("spec", "dtype", to=["float32"]),
    "bad eos": header_damage("spec", "eos_ids", to=[-1]),
    "eos of a wrong type": header_damage("spec", "eos_ids", to=5),
    "moved tensor": header_damage("tensors", "embed", "offset", to=0),
    "size of a wrong type": header_damage("weights", "bytes", to=[]),
    "foreign file": add_foreign,
    "another checksum": header_damage("checksum", to="0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_rebuilt_in_the_cache_and_refused_elsewhere(
    source: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    made = resolve_model(source, cache=cache)
    weights = made.weights_path.read_bytes()
    named = tmp_path / "named"
    shutil.copytree(made.path, named)
    DAMAGE[damage](named)
    with pytest.raises(CheckpointError, match="named") as caught:
        resolve_model(named, cache=cache)
    assert "\n" not in str(caught.value)
    DAMAGE[damage](made.path)
    caplog.clear()
    assert resolve_model(source, cache=cache) == made
    assert made.weights_path.read_bytes() == weights
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1 and "rebuilding" in lines[0], lines
    assert resolve_model(source, cache=cache) == made and len(caplog.records) == 1


def test_a_cache_entry_without_header_or_no_folder_is_replaced(source: Path, cache: Path) -> None:
    made = resolve_model(source, cache=cache)
    (made.path / "bundle.json").unlink()
    assert resolve_model(source, cache=cache) == made
    shutil.rmtree(made.path)
    made.path.write_text("in the way")
    assert resolve_model(source, cache=cache) == made


def test_a_copy_is_verified_once_even_where_it_cannot_be_written(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(resolve_model(source, cache=cache).path, copy)
    (copy / "verified.json").unlink()
    (copy / "verified.json").mkdir()  # no stamp can be written here: the cache takes it
    time.sleep(0.1)
    assert open_bundle(copy, cache).path == copy
    with monkeypatch.context() as patch:
        patch.setattr(bundle, "file_digest", no_reading)
        open_bundle(copy, cache)
    flip(copy / "weights.bin", 77)
    with pytest.raises(CheckpointError, match=r"weights\.bin does not match"):
        open_bundle(copy, cache)


def test_a_stamp_made_too_soon_after_a_write_is_not_believed(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(resolve_model(source, cache=cache).path, copy)
    now = max(path.stat().st_ctime_ns for path in copy.iterdir())
    monkeypatch.setattr("hotcold.runtime.model.checkpoints.digest.time.time_ns", lambda: now + 1000)
    open_bundle(copy, cache)
    monkeypatch.setattr(bundle, "file_digest", no_reading)
    with pytest.raises(AssertionError, match="read"):
        open_bundle(copy, cache)


def test_profile_and_predictors_travel_along(source: Path, cache: Path) -> None:
    predictors, profile = source / "predictors.safetensors", source / "activations.npz"
    write_safetensors(predictors, {"layers.0.fc1": np.ones((2, 2), np.float32)})
    profile.write_bytes(pack({"counts": np.ones((2, 3), np.int64)}))
    made = resolve_model(source, cache=cache)
    assert made.profile_path is not None and made.predictors_path is not None
    assert made.profile_path.read_bytes() == profile.read_bytes()
    assert made.predictors_path.read_bytes() == predictors.read_bytes()
    (source / "tokenizer.json").unlink()
    assert not (resolve_model(source, cache=cache).path / "tokenizer.json").exists()


def test_one_layer_at_a_time(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TinyLlama(d=128, layers=12, neurons=1024, heads=4, vocab=4000)
    source = write_llama(tmp_path / "m", model)
    for module in ("huggingface", "convert"):
        monkeypatch.setattr(f"hotcold.runtime.model.checkpoints.{module}.BLOCK_BYTES", 64 << 10)
    layer = 3 * 1024 * 128 * 4
    tracemalloc.start()
    try:
        made = resolve_model(source, cache=cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made.weights_bytes > 12 * layer and peak < layer + (2 << 20), peak
