"""Find or build the CUDA plug-in, the library that holds the GPU kernels.

The core never links against CUDA. The plug-in is looked for in this order:

1. the path in HOTCOLD_CUDA_PLUGIN,
2. `libhotcold_cuda.so` in native/ (a wheel that brought it),
3. the user's cache, under a key of sources, flags and architecture, and one of the compiler; where
   there is no compiler any will do,
4. compiled now, with nvcc, into the cache (one process compiles, others wait for it). What did not
   compile is remembered beside it and not tried again.

`make cuda`, or `python -m hotcold.native.gpu.cuda_plugin`, compiles ahead, for the GPU that is
visible or for HOTCOLD_CUDA_ARCH, without one. The kernels need compute capability 8.0 (bfloat16
tensor cores, asynchronous copies).

HOTCOLD_CUDA says what a missing plug-in means: `auto` (the CPU device and one log line), `require`
(an error), `off` (do not look). Whether a library that was found can be used is checked where it is
opened (`native/loop/device.c`: the ABI number).
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hotcold.native.errors import BackendError, ConfigError, HotcoldError
from hotcold.native.gpu import nvml

logger = logging.getLogger(__name__)

NATIVE = Path(__file__).resolve().parents[1]
NAME = "libhotcold_cuda.so"
WARNINGS = "-Wall,-Wextra,-Wno-missing-field-initializers"  # {}: what is not named is 0
FLAGS = (
    *("-std=c++17", "-O3", "-shared", "-cudart", "static", "-t", "0"),
    *("-Xcompiler", f"-fPIC,{WARNINGS}", f"-I{NATIVE}"),
)
STRICT = ("-Werror", "all-warnings", "-Xcompiler", "-Werror")  # warnings are errors
SUFFIXES = (".cu", ".cuh", ".h")
LEAST_ARCH = 80
MODES = ("auto", "require", "off")
COMPILE_TIMEOUT_S = 900


@dataclass(frozen=True)
class Plugin:
    """A plug-in library and where it came from: "path", "wheel", "cache" or "compiled"."""

    path: Path
    origin: str


def mode() -> str:
    """The value of HOTCOLD_CUDA.

    Raises:
        ConfigError: it is none of the modes.
    """
    value = os.environ.get("HOTCOLD_CUDA", "auto") or "auto"
    if value not in MODES:
        raise ConfigError(f"HOTCOLD_CUDA is {value!r:.40}; choose from {', '.join(MODES)}")
    return value


def find(build: bool = True) -> Plugin | None:
    """The plug-in for this machine's first GPU; None where passes stay on the CPU device.

    Raises:
        BackendError: HOTCOLD_CUDA=require and there is no GPU, no plug-in and no way to build one.
        ConfigError: HOTCOLD_CUDA is unknown.
    """
    wanted = mode()
    if wanted == "off":
        return None
    try:
        return required(build)
    except BackendError as error:
        if wanted == "require":
            raise
        if nvml.gpus():
            logger.warning("running on the CPU device: %s", error)
        return None


def required(build: bool = True) -> Plugin:
    """The plug-in for this machine's first GPU, whatever HOTCOLD_CUDA says.

    Raises:
        BackendError: there is no GPU that the kernels serve, or no plug-in and no way to build one.
    """
    gpu = nvml.visible()
    if gpu is None:
        hidden = " (CUDA_VISIBLE_DEVICES hides them)" if nvml.gpus() else ""
        raise BackendError(f"no NVIDIA GPU is visible{hidden}; HOTCOLD_CUDA=auto runs without one")
    if int(gpu.arch) < LEAST_ARCH:
        raise BackendError(
            f"the GPU ({gpu.name}) has compute capability {_capability(gpu.arch)}, the kernels "
            f"need {_capability(str(LEAST_ARCH))} or newer; HOTCOLD_CUDA=off runs without it"
        )
    if named := os.environ.get("HOTCOLD_CUDA_PLUGIN"):
        if not Path(named).is_file():
            raise BackendError(f"HOTCOLD_CUDA_PLUGIN names {named!r:.200}, which is no file")
        return Plugin(Path(named).resolve(), "path")
    if (NATIVE / NAME).is_file():
        return Plugin(NATIVE / NAME, "wheel")
    return built(build)


def built(build: bool = True) -> Plugin:
    """The plug-in out of the cache, or compiled into it; needs no GPU with HOTCOLD_CUDA_ARCH.

    Raises:
        BackendError: it is not there and cannot be built, or did not compile before.
    """
    arch, compiler = architecture(), find_compiler()
    stem = f"libhotcold_cuda-{_key(arch)}"
    if compiler is None:
        kept = sorted(cache_folder().glob(f"{stem}-*.so"), key=lambda path: path.stat().st_mtime)
        if kept:
            return Plugin(kept[-1], "cache")
        raise BackendError(
            "a GPU is there but no plug-in for it, and no nvcc to build one; install the CUDA "
            "toolkit, or set HOTCOLD_CUDA_PLUGIN"
        )
    target = cache_folder() / f"{stem}-{_compiler_key(compiler)}.so"
    if target.is_file():
        return Plugin(target, "cache")
    if not build:
        raise BackendError("the GPU plug-in is not built yet")
    compile_plugin(compiler, arch, target)
    return Plugin(target, "compiled")


def sources() -> list[Path]:
    """Every file the plug-in is made of, in a fixed order."""
    cuda = [path for path in (NATIVE / "cuda").rglob("*.*") if path.suffix in SUFFIXES]
    shared = [path for room in ("abi", "layout") for path in (NATIVE / room).glob("*.[ch]")]
    return [*sorted(cuda), *sorted(shared), NATIVE / "loop" / "device.h"]


def architecture() -> str:
    """What to compile for: HOTCOLD_CUDA_ARCH, else the visible GPU's compute capability ("90").

    Raises:
        BackendError: neither is there, or it is older than what the kernels need.
    """
    gpu = nvml.visible()
    arch = os.environ.get("HOTCOLD_CUDA_ARCH") or (gpu.arch if gpu else "")
    if not arch:
        raise BackendError("no NVIDIA GPU is visible to compile for; set HOTCOLD_CUDA_ARCH")
    known = re.fullmatch(r"(?:sm_)?((\d{2,3})[a-z]?)", arch)
    if known is None or int(known[2]) < LEAST_ARCH:
        raise BackendError(
            f"the kernels cannot be compiled for {arch!r:.40}; set HOTCOLD_CUDA_ARCH to "
            f"{LEAST_ARCH} or more, as in 90 or sm_90"
        )
    return known[1]


def _capability(arch: str) -> str:
    """7.5 of "75"."""
    return f"{arch[:-1]}.{arch[-1]}"


def find_compiler() -> str | None:
    """Path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME")
    at_home = shutil.which("nvcc", path=f"{home}/bin") if home else None
    return at_home or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def cache_folder() -> Path:
    """Where this user's compiled kernels and measurements are kept."""
    root = os.environ.get("HOTCOLD_CACHE")
    if root:
        return Path(root)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hotcold"


def _key(arch: str) -> str:
    """What a built library depends on beside the compiler, as 16 hex digits."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.relative_to(NATIVE).as_posix().encode() + b"\0" + path.read_bytes())
    digest.update("\0".join((*FLAGS, arch)).encode())
    return digest.hexdigest()[:16]


def _compiler_key(compiler: str) -> str:
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False
    ).stdout
    return hashlib.sha256(version.encode()).hexdigest()[:8]


def compile_plugin(compiler: str, arch: str, target: Path, flags: tuple[str, ...] = FLAGS) -> None:
    """Compile all sources into one library; atomic, and only one process at a time.

    Raises:
        BackendError: nvcc failed or took too long, now or before; the message holds its last lines.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = target.with_suffix(".failed")
        if target.is_file():
            return
        if failed.is_file():
            raise BackendError(f"{failed.read_text()}\n(remove {failed} to try again)")
        fresh = target.with_suffix(f".{os.getpid()}.so")
        units = [str(path) for path in sources() if path.suffix == ".cu"]
        logger.warning("compiling the GPU kernels for sm_%s, about a minute, once", arch)
        trouble = _run([compiler, *flags, f"-arch=sm_{arch}", *units, "-o", str(fresh)])
        if trouble:
            fresh.unlink(missing_ok=True)
            with suppress(OSError):  # a full disk: it is tried again
                failed.write_text(trouble)
            raise BackendError(trouble)
        fresh.replace(target)


def _run(command: list[str]) -> str:
    """Run the compiler; empty, or what went wrong."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvcc could not build the GPU kernels: {error}"
    if done.returncode == 0:
        return ""
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])
    return f"nvcc could not build the GPU kernels:\n{tail}"


if __name__ == "__main__":
    try:
        print(built().path)
    except HotcoldError as error:
        sys.exit(str(error))
