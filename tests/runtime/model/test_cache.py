"""The way from a model name to a bundle: made once, never half, refused in one sentence."""

import logging
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from support.models import TinyLlama, write_llama

from hotcold.native.errors import BudgetError, CheckpointError, ConfigError
from hotcold.runtime.model.checkpoints import bundle, convert
from hotcold.runtime.model.checkpoints.bundle import open_bundle, resolve_model
from hotcold.runtime.model.checkpoints.cache import cache_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "source", TinyLlama(dtype="float16"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


SCRIPT = """
import sys, time, os
from hotcold.runtime.model.checkpoints import bundle
write = bundle.write_bundle
def slow(checkpoint, folder):
    print("writing", flush=True)
    (folder / "weights.bin").write_bytes(b"half")
    time.sleep(float(sys.argv[3])) if len(sys.argv) > 3 else sys.stdin.readline()
    return write(checkpoint, folder)
bundle.write_bundle = slow
print(bundle.resolve_model(sys.argv[1], cache=sys.argv[2]).path, flush=True)
"""


def converter(source: Path, cache: Path, *pause_s: float) -> "subprocess.Popen[str]":
    """A process that stops inside a conversion: for some seconds, or until it is told to go on."""
    command = [sys.executable, "-c", SCRIPT, str(source), str(cache), *map(str, pause_s)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def test_processes_at_once_convert_once(source: Path, cache: Path) -> None:
    processes = [converter(source, cache, 0.7) for _ in range(3)]
    lines = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(line.count("writing") for line in lines) == 1
    assert len({line[-1] for line in lines}) == 1


def test_a_killed_conversion_leaves_nothing_that_is_read_or_kept(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    other = write_llama(tmp_path / "other", TinyLlama(seed=3))
    killed = [converter(folder, cache) for folder in (source, other)]
    alive = converter(write_llama(tmp_path / "alive", TinyLlama(seed=4)), cache)
    for process in (*killed, alive):
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert len(list((cache / "bundles").glob(".*.tmp-*"))) == 3
    made = resolve_model(source, cache=cache)
    left = list((cache / "bundles").glob(".*.tmp-*"))
    assert len(left) == 1 and "alive" in left[0].name, left  # never that of one still running
    finished = alive.communicate("go on\n", timeout=60)[0].strip()
    assert open_bundle(Path(finished)).name == "alive"
    assert open_bundle(made.path) == made
    assert not list((cache / "bundles").glob(".*.tmp-*"))


def test_a_failed_conversion_leaves_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(checkpoint: object, folder: Path) -> dict[str, Any]:
        (folder / "weights.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "write_bundle", fail)
    with pytest.raises(KeyboardInterrupt):
        resolve_model(source, cache=cache)
    assert [path.suffix for path in (cache / "bundles").iterdir()] == [".lock"]


def test_a_source_that_changes_meanwhile_is_noticed(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touch(checkpoint: Any, folder: Path) -> dict[str, Any]:
        os.utime(source / "model.safetensors", ns=(5, 5))
        return convert.write_bundle(checkpoint, folder)

    monkeypatch.setattr(bundle, "write_bundle", touch)
    with pytest.raises(CheckpointError, match="changed while it was converted"):
        resolve_model(source, cache=cache)
    assert not [path for path in (cache / "bundles").iterdir() if path.suffix != ".lock"]


def test_a_cache_that_cannot_be_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("HOTCOLD_CACHE", str(blocked))
    with pytest.raises(ConfigError, match="file.*HOTCOLD_CACHE"):
        resolve_model(source)


def test_a_full_disk(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(BudgetError, match=r"takes 0\.00 GB.*0\.00 GB free.*HOTCOLD_CACHE"):
        resolve_model(source, cache=cache)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOTCOLD_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "hotcold"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hotcold"
    monkeypatch.setenv("HOTCOLD_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    assert cache_folder(tmp_path) == tmp_path


def test_progress_is_logged_after_two_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(convert.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    progress = convert.Progress("converting x")
    for now[0], done in ((1.0, 10), (2.5, 20), (3.0, 30), (4.6, 50), (4.7, 100)):
        progress(done * 10**7, 10**9)
    assert [record.getMessage() for record in caplog.records] == [
        f"converting x: {done} % of 1.00 GB" for done in (20, 50, 100)
    ]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("", "empty"),
        ("meta-llama/nothing", "does not exist.*hf download"),
        ("x\0y", "x"),
        ("x" * 5000, "xxx"),
        ("~nobody-at-all/x", "nobody"),
    ],
)
def test_models_that_are_not_there(cache: Path, model: str, words: str) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=words) as caught:
        resolve_model(model, cache=cache)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_models_that_are_files(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"m\.gguf ends inside its header"):
        resolve_model(tmp_path / "m.gguf", cache=cache)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json is a file of a model; give its"):
        resolve_model(tmp_path / "config.json", cache=cache)


def test_dtypes_that_cannot_be(source: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="'int4'.*float32, float16, bfloat16"):
        resolve_model(source, "int4", cache)
    made = resolve_model(source, cache=cache)
    with pytest.raises(ConfigError, match="holds float16.*float32.*source"):
        resolve_model(made.path, "float32", cache)
