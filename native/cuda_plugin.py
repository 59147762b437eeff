"""Find or build the CUDA plug-in, the library that holds the GPU kernels.

The core never links against CUDA. The plug-in is looked for in this order:

1. the path in HOTCOLD_CUDA_PLUGIN,
2. `libhotcold_cuda.so` beside this file (a wheel that brought it),
3. the user's cache, under a key of sources, flags, architecture and compiler,
4. compiled now, with nvcc, into the cache (one process compiles, others wait for it).

HOTCOLD_CUDA says what a missing plug-in means: `auto` (the CPU device and one log line), `require`
(an error), `off` (do not look). Whether a library that was found can be used is checked where it is
opened (`native/device.c`: the ABI number).
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from hotcold.native import nvml
from hotcold.runtime.errors import BackendError, ConfigError

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
NAME = "libhotcold_cuda.so"
FLAGS = ("-std=c++17", "-O3", "-shared", "-cudart", "static", "-Xcompiler", "-fPIC", "-t", "0")
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

    Args:
        build: compile it where no other way gives one.

    Raises:
        BackendError: HOTCOLD_CUDA=require and there is no GPU, no plug-in and no way to build one.
        ConfigError: HOTCOLD_CUDA is unknown.
    """
    wanted = mode()
    if wanted == "off":
        return None
    try:
        return _find(build)
    except BackendError as error:
        if wanted == "require":
            raise
        if nvml.gpus():
            logger.warning("running on the CPU device: %s", error)
        return None


def _find(build: bool) -> Plugin:
    found = nvml.gpus()
    if not found:
        raise BackendError("no NVIDIA GPU is visible; HOTCOLD_CUDA=auto runs without one")
    if named := os.environ.get("HOTCOLD_CUDA_PLUGIN"):
        if not Path(named).is_file():
            raise BackendError(f"HOTCOLD_CUDA_PLUGIN names {named!r:.200}, which is no file")
        return Plugin(Path(named).resolve(), "path")
    if (HERE / NAME).is_file():
        return Plugin(HERE / NAME, "wheel")
    arch, compiler = architecture(), find_compiler()
    target = cache_folder() / f"libhotcold_cuda-{_key(compiler, arch)}.so"
    if target.is_file():
        return Plugin(target, "cache")
    if compiler is None:
        raise BackendError(
            "a GPU is there but no plug-in for it, and no nvcc to build one; install the CUDA "
            "toolkit, or set HOTCOLD_CUDA_PLUGIN"
        )
    if not build:
        raise BackendError("the GPU plug-in is not built yet")
    compile_plugin(compiler, arch, target)
    return Plugin(target, "compiled")


def sources() -> list[Path]:
    """Every file the plug-in is made of, in a fixed order."""
    folder = HERE / "cuda"
    own = [path for path in sorted(folder.iterdir()) if path.suffix in (".cu", ".cuh", ".h")]
    return [*own, *(HERE / name for name in ("device.h", "gpu.h", "hotcold.h", "predict.h"))]


def architecture() -> str:
    """What to compile for: HOTCOLD_CUDA_ARCH, else the visible GPU's compute capability ("90").

    Raises:
        BackendError: neither is there.
    """
    found, named = nvml.gpus(), os.environ.get("HOTCOLD_CUDA_ARCH")
    if not named and not found:
        raise BackendError("no NVIDIA GPU is visible to compile for; set HOTCOLD_CUDA_ARCH")
    return named or found[min(nvml.visible_index(), len(found) - 1)].arch


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


def _key(compiler: str | None, arch: str) -> str:
    """What a built library depends on, as 16 hex digits."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = ""
    if compiler is not None:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=False
        ).stdout
    digest.update("\0".join((*FLAGS, arch, version)).encode())
    return digest.hexdigest()[:16]


def compile_plugin(compiler: str, arch: str, target: Path) -> None:
    """Compile all sources into one library; atomic, and only one process at a time.

    Raises:
        BackendError: nvcc failed or took too long; the message holds its last lines.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return
        fresh = target.with_suffix(f".{os.getpid()}.so")
        units = [str(path) for path in sources() if path.suffix == ".cu"]
        command = [compiler, *FLAGS, f"-arch=sm_{arch}", *units, "-o", str(fresh)]
        logger.warning("compiling the GPU kernels for sm_%s, about a minute, once", arch)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(f"nvcc could not build the GPU kernels: {error}") from error
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])
            raise BackendError(f"nvcc could not build the GPU kernels:\n{tail}")
        fresh.replace(target)
