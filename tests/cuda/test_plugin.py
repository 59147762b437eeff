"""Finding and building the plug-in, on machines without a GPU too."""

import subprocess
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.gpu import usable_plugin

from hotcold.native.bindings.device import open_plugin
from hotcold.native.errors import BackendError, ConfigError
from hotcold.native.gpu import cuda_plugin, nvml
from hotcold.native.gpu.nvml import Gpu

H100 = Gpu("H100", "90", 80 << 30, 0)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU by word only, an empty cache, nothing set."""
    monkeypatch.setattr(nvml, "gpus", lambda: [H100])
    for name in ("CUDA", "CUDA_PLUGIN", "CUDA_ARCH"):
        monkeypatch.delenv(f"HOTCOLD_{name}", raising=False)
    for name in ("CUDA_HOME", "CUDA_VISIBLE_DEVICES"):
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


@pytest.mark.parametrize(
    ("shown", "index"),
    [
        (None, 0),
        ("0", 0),
        (" 1 ,0", 1),
        ("1,7", 1),
        ("GPU-b", 1),
        ("GPU-a1", 0),
        ("GPU-a", None),  # two begin with it
        ("GPU-d", None),
        ("MIG-c", 0),
        ("", None),
        ("-1", None),
        ("-1,0", None),
        ("3", None),
        ("\u0663", None),
        ("none", None),
    ],
)
def test_a_gpu_is_hidden_as_cuda_hides_it(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, index: int | None
) -> None:
    found = [Gpu("H100", "90", 80 << 30, 5, uuid) for uuid in ("GPU-a1", "GPU-b2", "GPU-a3")]
    monkeypatch.setattr(nvml, "gpus", lambda: found)
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert nvml.visible() is (None if index is None else found[index])
    assert nvml.visible_index() == (index or 0)
    assert nvml.used_bytes() == 5


def test_hidden_gpus_leave_the_cpu_device(
    one_gpu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HOTCOLD_CUDA", "auto")
    assert cuda_plugin.find() is None
    assert "CUDA_VISIBLE_DEVICES hides them" in caplog.text
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    with pytest.raises(BackendError, match="CUDA_VISIBLE_DEVICES hides them"):
        cuda_plugin.find()


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
    monkeypatch.setattr(cuda_plugin, "find_compiler", lambda: None)  # the toolkit is gone
    kept = cuda_plugin.find()
    assert kept == cuda_plugin.Plugin(other.path, "cache")
    monkeypatch.setattr(cuda_plugin, "FLAGS", ("-O0",))
    assert cuda_plugin.find() is None


def test_a_compiler_that_fails_is_quoted_and_not_asked_again(
    one_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = one_gpu / "asked"
    fail = f'[ "$1" = --version ] || echo x >> {asked}; echo "gemv.cu(7): error: no"; exit 2'
    compiler(one_gpu, fail, monkeypatch)
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    for again in (False, True):
        with pytest.raises(BackendError, match=r"gemv\.cu\(7\)") as caught:
            cuda_plugin.find()
        assert ("to try again" in str(caught.value)) == again
    monkeypatch.setenv("HOTCOLD_CUDA", "auto")
    assert cuda_plugin.find() is None
    assert asked.read_text() == "x\n"
    (remembered,) = one_gpu.glob("*.failed")
    remembered.unlink()
    assert cuda_plugin.find() is None
    assert asked.read_text() == "x\nx\n"


def test_with_a_gpu_the_tests_fail_where_kernels_do_not_compile(
    one_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(one_gpu, "exit 2", monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="a GPU is there and no plug-in for it"):
        usable_plugin()
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    with pytest.raises(pytest.skip.Exception):
        usable_plugin()
    monkeypatch.delenv("HOTCOLD_CUDA")
    monkeypatch.setattr(nvml, "gpus", list)
    with pytest.raises(pytest.skip.Exception, match="no NVIDIA GPU"):
        usable_plugin()


@pytest.mark.parametrize("named", ["", "x.so"], ids=["to build", "named"])
def test_an_old_gpu_is_left_to_the_cpu_device(
    one_gpu: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A Turing card has no bfloat16 tensor cores: nothing is compiled, the reason is said."""
    compiler(one_gpu, "exit 2", monkeypatch)
    (one_gpu / "x.so").write_text("no library")
    if named:
        monkeypatch.setenv("HOTCOLD_CUDA_PLUGIN", str(one_gpu / named))
    monkeypatch.setattr(nvml, "gpus", lambda: [Gpu("T4", "75", 16 << 30, 0)])
    assert cuda_plugin.find() is None
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    with pytest.raises(BackendError, match=r"\(T4\) has compute capability 7.5, .* need 8.0"):
        cuda_plugin.find()
    monkeypatch.setattr(nvml, "gpus", lambda: [Gpu("B200", "100", 180 << 30, 0)])
    monkeypatch.setenv("HOTCOLD_CUDA_PLUGIN", str(one_gpu / "x.so"))
    assert cuda_plugin.find() is not None


@pytest.mark.parametrize("arch", ["75", "sm_75", "9.0", "9"])
def test_an_architecture_that_cannot_be_is_refused(
    one_gpu: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    monkeypatch.setenv("HOTCOLD_CUDA_ARCH", arch)
    with pytest.raises(BackendError, match=f"compiled for '{arch}'; set HOTCOLD_CUDA_ARCH to 80"):
        cuda_plugin.find()


def test_it_is_built_ahead_without_a_gpu(one_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = 'for last; do :; done; [ "$1" = --version ] && echo 13 && exit; echo built > "$last"'
    compiler(one_gpu, build, monkeypatch)
    monkeypatch.setattr(nvml, "gpus", list)
    with pytest.raises(BackendError, match="set HOTCOLD_CUDA_ARCH"):
        cuda_plugin.built()
    monkeypatch.setenv("HOTCOLD_CUDA_ARCH", "sm_90")
    ahead = cuda_plugin.built()
    assert ahead.origin == "compiled"
    monkeypatch.delenv("HOTCOLD_CUDA_ARCH")
    monkeypatch.setattr(nvml, "gpus", lambda: [H100])
    assert cuda_plugin.find() == cuda_plugin.Plugin(ahead.path, "cache")


@pytest.mark.slow
def test_the_kernels_compile_without_a_warning(tmp_path: Path) -> None:
    """For the oldest architecture that is served, which has the fewest instructions.

    Without optimising device code, which finds no more warnings and takes three times as long.
    """
    nvcc = cuda_plugin.find_compiler()
    if nvcc is None:
        pytest.skip("no nvcc to compile the kernels with")
    library = tmp_path / "x.so"
    arch = f"-arch=sm_{cuda_plugin.LEAST_ARCH}"
    units = [path for path in cuda_plugin.sources() if path.suffix == ".cu"]
    fast = ("-Xcicc", "-O0", "-Xptxas", "-O0")
    command = [nvcc, *cuda_plugin.FLAGS, *cuda_plugin.STRICT, *fast, arch, *units, "-o", library]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"hc_device_table" in library.read_bytes()


def test_the_exchange_forms_compile(tmp_path: Path) -> None:
    nvcc = cuda_plugin.find_compiler()
    if nvcc is None:
        pytest.skip("no nvcc to compile it with")
    source = ROOT / "tests" / "cuda" / "exchange_forms.cu"
    command = [nvcc, "-std=c++17", "-arch=sm_90", str(source), "-o", str(tmp_path / "forms")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
