"""Checkpoints with NaN or Inf are refused with tensor and index; full and read-only disks."""

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import TinyLlama, random_tensors, to_raw, write_llama

from hotcold.native.errors import BudgetError, CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints import convert
from hotcold.runtime.model.checkpoints.bundle import resolve_model
from hotcold.runtime.model.checkpoints.dtypes import PIECE, RAW_TYPES, check_finite, to_float32

MODEL = TinyLlama(d=12, layers=2, neurons=10, heads=2, kv_heads=1, vocab=9, tokenizer=None)
PLACES = {
    "model.embed_tokens.weight": (8, 11),
    "model.layers.1.self_attn.k_proj.weight": (5, 0),
    "model.layers.0.input_layernorm.weight": (3,),
    "model.layers.1.mlp.gate_proj.weight": (9, 2),
    "model.layers.0.mlp.up_proj.weight": (0, 0),
    "model.layers.1.mlp.down_proj.weight": (11, 9),
    "lm_head.weight": (1, 1),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("float16", np.inf)])
def test_the_tensor_and_the_index_are_named(
    tmp_path: Path, name: str, dtype: str, value: float
) -> None:
    tensors = random_tensors(MODEL)
    tensors[name][PLACES[name]] = value
    model = TinyLlama(**{**vars(MODEL), "dtype": dtype})
    folder = write_llama(tmp_path / "m", model, tensors)
    index = re.escape(str(list(PLACES[name])))
    with pytest.raises(CheckpointError, match=rf"tensor {name} of .* holds {value} at {index};"):
        resolve_model(folder, cache=tmp_path / "cache")
    left = [path for path in (tmp_path / "cache/bundles").iterdir() if path.suffix != ".lock"]
    assert not left


@given(
    dtype=st.sampled_from(sorted(RAW_TYPES)),
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    at=st.integers(0, 3 * PIECE - 1),
    first_row=st.integers(0, 5),
)
def test_every_place_is_looked_at(dtype: str, value: float, at: int, first_row: int) -> None:
    raw = np.zeros((3, PIECE), RAW_TYPES[dtype])
    raw.reshape(-1)[at] = to_raw(np.array([value], np.float32), dtype)[0]
    with pytest.raises(CheckpointError, match=str(value)) as caught:
        check_finite(raw, dtype, "t", first_row)
    assert f"[{at // PIECE + first_row}, {at % PIECE}]" in str(caught.value)


@given(dtype=st.sampled_from(sorted(RAW_TYPES)), data=st.data())
def test_bit_patterns_are_judged_as_numpy_does(dtype: str, data: st.DataObject) -> None:
    width = RAW_TYPES[dtype].itemsize * 8
    bits = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=20))
    raw = np.array(bits, f"u{width // 8}").view(RAW_TYPES[dtype])
    with np.errstate(invalid="ignore"):
        finite = bool(np.isfinite(to_float32(raw, dtype)).all())
    if finite:
        check_finite(raw, dtype, "t")
    else:
        with pytest.raises(CheckpointError):
            check_finite(raw, dtype, "t")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "source", TinyLlama(d=64, neurons=2000))  # 3.2 MB


def test_a_limit_met_while_writing(source: Path, tmp_path: Path) -> None:
    """As a full disk or quota does it: a write that fails in the middle of the weights."""
    script = """
import resource, sys
from hotcold.native.errors import BudgetError
from hotcold.runtime.model.checkpoints.bundle import resolve_model
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    resolve_model(sys.argv[1], cache=sys.argv[2])
except BudgetError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(source), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    pattern = (
        r"takes 0\.00 GB \(\d{7} bytes\).* free \(\d+ bytes\) \(File too large\);.*HOTCOLD_CACHE"
    )
    assert re.search(pattern, done.stdout), done.stdout
    assert [path.suffix for path in (tmp_path / "cache/bundles").iterdir()] == [".lock"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_small_disk_is_refused_at_once_and_a_filled_one_cleaned(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BudgetError, match=r"takes .*\(\d{7} bytes\).*\(20\d{5} bytes\); make room"):
        resolve_model(source, cache=small_disk)
    real = shutil.disk_usage
    answers = iter([real("/")])  # the disk fills up after the first look
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: next(answers, real(path)))
    with pytest.raises(BudgetError, match=r"\(\d{7} bytes\) \(No space left on device\)") as caught:
        resolve_model(source, cache=small_disk)
    free = re.search(r"free \((\d+) bytes\)", str(caught.value))
    assert free is not None and 1 << 20 < int(free[1]) <= 2 << 20
    assert [path.suffix for path in (small_disk / "bundles").iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_other_troubles_with_the_disk_name_the_cache(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(convert, "_write_weights", fail)
    with pytest.raises(ConfigError, match=f"{os.strerror(number)}.*HOTCOLD_CACHE"):
        resolve_model(source, cache=tmp_path / "cache")


def test_a_read_only_cache(source: Path, small_disk: Path, tmp_path: Path) -> None:
    """What is in it can be run; what is not cannot be converted, and the sentence says so."""
    tiny = write_llama(tmp_path / "tiny", MODEL)
    shutil.copytree(resolve_model(tiny, cache=tmp_path / "other").path.parents[1], small_disk / "c")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert resolve_model(tiny, cache=small_disk / "c").path.is_relative_to(small_disk)
    with pytest.raises(ConfigError, match="Read-only file system.*HOTCOLD_CACHE"):
        resolve_model(source, cache=small_disk / "c")
    with pytest.raises(ConfigError, match="Read-only file system.*HOTCOLD_CACHE"):
        resolve_model(source, cache=small_disk / "new")
