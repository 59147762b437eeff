"""The NEON kernels on an emulated ARM CPU, and the same program on this one."""

import shutil
import subprocess
from pathlib import Path

import pytest
from support.checkout import ROOT

from hotcold.native.bindings import kernels

CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
FLAGS = "-std=gnu11 -O2 -Wall -Wextra -Werror -pthread -fno-math-errno -ffp-contract=off".split()
LEFT_OUT = {
    "device",
    "executor",
    "exchange",
    "hop",
    "loop",
    "request",
    "steps",
    "watcher",
    "window",
}


def build(compiler: str, folder: Path, *flags: str) -> Path:
    """The driver and the operators as one program."""
    native = ROOT / "native"
    sources = [*native.glob("core/*.c"), *native.glob("cpu/*.c"), *native.glob("ops/*.c")]
    kept = [str(path) for path in sorted(sources) if path.stem not in LEFT_OUT]
    program = folder / "driver"
    command = [compiler, *FLAGS, *flags, f"-I{native}", str(Path(__file__).parent / DRIVER), *kept]
    subprocess.run([*command, "-o", str(program), "-lm", "-ldl"], check=True, timeout=300)
    return program


DRIVER = "variants_driver.c"


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.neon
@pytest.mark.slow
def test_neon_computes_what_double_does(tmp_path: Path) -> None:
    for tool, package in ((CROSS, "gcc-aarch64-linux-gnu"), (EMULATOR, "qemu-user-static")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing; on Debian: apt-get install {package}")
    said = run(EMULATOR, str(build(CROSS, tmp_path, "-static")))
    assert [line.split(":")[0] for line in said.splitlines()] == ["neon", "ref"]


@pytest.mark.slow
def test_the_driver_itself_agrees_with_this_cpu(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("cc is missing")
    said = run(str(build("cc", tmp_path)))
    names = tuple(line.split(":")[0] for line in said.splitlines())
    assert names == kernels.cpu_variants()
