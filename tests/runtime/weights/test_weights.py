"""WeightStore: what it hands out is what the checkpoint held, at the address it says."""

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, random_tensors, to_raw, write_llama

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model
from hotcold.runtime.model.checkpoints.dtypes import to_float32
from hotcold.runtime.weights.weights import WeightStore

MODEL = TinyLlama(d=45, layers=2, neurons=33, heads=5, kv_heads=1, head_dim=6, vocab=7)


def make(tmp_path: Path, dtype: str = "float32") -> Bundle:
    folder = write_llama(tmp_path / "m", replace(MODEL, dtype=dtype))
    return resolve_model(folder, cache=tmp_path / "cache")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_float32_views_are_exact(tmp_path: Path, dtype: str) -> None:
    source = {
        name: to_float32(to_raw(value, dtype), dtype)
        for name, value in random_tensors(MODEL).items()
    }
    with WeightStore.open(make(tmp_path, dtype)) as store:
        np.testing.assert_array_equal(store.float32("head"), source["lm_head.weight"])
        np.testing.assert_array_equal(store.float32("final_norm"), source["model.norm.weight"])
        for part in ("gate", "up", "down"):
            expected = source[f"model.layers.1.mlp.{part}_proj.weight"]
            rows = store.neuron_rows(1, part)
            np.testing.assert_array_equal(rows, expected.T if part == "down" else expected)
            assert rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_addresses_and_arrays_are_the_same_memory(tmp_path: Path, dtype: str) -> None:
    store = WeightStore.open(make(tmp_path, dtype))
    for name, entry in store.bundle.tensors.items():
        raw = store.array(name)
        assert raw.ctypes.data == store.address(name) and raw.shape == entry.shape
        assert not raw.flags.writeable
        assert store.address(name) % (4096 if name.endswith("neurons") else 64) == 0
        assert ctypes.string_at(store.address(name), entry.size) == raw.tobytes()
    assert store.array("embed").dtype == (np.uint16 if dtype == "bfloat16" else np.float32)
    assert store.array("layers.0.neurons").dtype == np.uint8
    assert store.nbytes == store.bundle.weights_path.stat().st_size
    store.close()


def test_copies_are_copies(tmp_path: Path) -> None:
    store = WeightStore.open(make(tmp_path))
    copy: np.ndarray[Any, Any] = store.float32("embed")
    copy[:] = 0
    assert store.float32("embed").any()


def test_close_is_idempotent_and_arrays_outlive_it(tmp_path: Path) -> None:
    store = WeightStore.open(make(tmp_path))
    raw = store.array("embed")
    before = raw.copy()
    store.close()
    store.close()
    np.testing.assert_array_equal(raw, before)
    for use in (store.address, store.array, store.float32):
        with pytest.raises(ConfigError, match="closed"):
            use("embed")


def test_what_is_not_there(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    with WeightStore.open(bundle) as store:
        for use in (store.address, store.array, store.float32):
            with pytest.raises(ConfigError, match="no tensor 'nope'"):
                use("nope")
        with pytest.raises(ConfigError, match="neuron_rows"):
            store.float32("layers.0.neurons")
        with pytest.raises(ConfigError, match="layers.2"):
            store.neuron_rows(2, "gate")
        with pytest.raises(ConfigError, match="choose gate, up or down"):
            store.neuron_rows(0, "side")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'magic'.*file"):
        WeightStore.open(bundle, "magic")


def test_a_file_that_changed_since_is_refused_not_mapped(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    for size in (5000, 0):
        with bundle.weights_path.open("r+b") as file:
            file.truncate(size)
        with pytest.raises(CheckpointError, match=r"weights\.bin.*open the model again"):
            WeightStore.open(bundle)
    bundle.weights_path.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin"):
        WeightStore.open(bundle)
