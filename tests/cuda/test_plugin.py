"""Finding and building the plug-in, on machines without a GPU too."""

from pathlib import Path

import pytest

from hotcold.native import cuda_plugin, nvml
from hotcold.native.device import open_plugin
from hotcold.native.nvml import Gpu
from hotcold.runtime.errors import BackendError, ConfigError

H100 = Gpu("H100", "90", 80 << 30, 0)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU by word only, an empty cache, nothing set."""
    monkeypatch.setattr(nvml, "gpus", lambda: [H100])
    for name in ("HOTCOLD_CUDA", "HOTCOLD_CUDA_PLUGIN", "HOTCOLD_CUDA_ARCH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOTCOLD_CACHE", str(tmp_path))
    return tmp_path


def compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an nvcc of our own in place."""
    binary = folder / "bin" / "nvcc"
    binary.parent.mkdir()
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder))


def test_without_a_gpu_the_cpu_device_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "gpus", list)
    monkeypatch.setenv("HOTCOLD_CUDA", "auto")
    assert cuda_plugin.find() is None
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        cuda_plugin.find()
    monkeypatch.setenv("HOTCOLD_CUDA", "of")
    with pytest.raises(ConfigError, match="auto, require, off"):
        cuda_plugin.find()


def test_off_does_not_look(one_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    monkeypatch.setenv("HOTCOLD_CUDA_PLUGIN", str(one_gpu / "none"))
    assert cuda_plugin.find() is None


def test_a_named_library_comes_first(one_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    monkeypatch.setenv("HOTCOLD_CUDA_PLUGIN", str(one_gpu / "x.so"))
    with pytest.raises(BackendError, match="is no file"):
        cuda_plugin.find()
    (one_gpu / "x.so").write_text("no library")
    found = cuda_plugin.find()
    assert found is not None
    assert found.origin == "path"
    with pytest.raises(BackendError, match="cannot open"):
        open_plugin(found.path)


def test_it_is_compiled_once_and_then_found(one_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = 'for last; do :; done; [ "$1" = --version ] && echo 13 && exit; echo built > "$last"'
    compiler(one_gpu, build, monkeypatch)
    first, second = cuda_plugin.find(), cuda_plugin.find()
    assert first is not None
    assert second is not None
    assert (first.origin, second.origin) == ("compiled", "cache")
    assert first.path == second.path
    assert first.path.parent == one_gpu
    monkeypatch.setenv("HOTCOLD_CUDA_ARCH", "89")
    other = cuda_plugin.find()
    assert other is not None
    assert other.path != first.path


def test_a_compiler_that_fails_is_quoted(one_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(one_gpu, 'echo "gemv.cu(7): error: no"; exit 2', monkeypatch)
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    with pytest.raises(BackendError, match=r"gemv\.cu\(7\)"):
        cuda_plugin.find()
    monkeypatch.setenv("HOTCOLD_CUDA", "auto")
    assert cuda_plugin.find() is None
