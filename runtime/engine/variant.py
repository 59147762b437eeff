"""Kernels of one's own: a C file becomes a CPU variant that is tested before it is used.

`hotcold bench kernels --variant` and `--kernels` of an engine end here; examples/05_own_kernel.c is
the guide. The file is compiled into the user's cache under a key of its text, the compiler and the
CPU, then compared with float64 in a process of its own (`variant_check`), which may crash or hang
alone. Every executor compiles and loads it itself; nothing falls back to the built-in kernels.
Files in CUDA (.cu) are handed on to cuda_variant.py.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hotcold.native
from hotcold.native.bindings.pool import force_cpu_variant, load_cpu_variant
from hotcold.native.errors import BackendError, ConfigError, KernelError
from hotcold.runtime.model.checkpoints.cache import cache_folder

FLAGS = (
    "-std=gnu11 -O3 -march=native -fPIC -shared -pthread -fno-math-errno -ffp-contract=off"
).split()
COMPILE_S, CHECK_S = 120, 120
_CHILD = (
    "import json, sys, importlib; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main(*sys.argv[3:])"
)


@dataclass(frozen=True)
class Variant:
    """A file of kernels, as it was when it was tested.

    Attributes:
        path: the C file, absolute.
        digest: of its text after the preprocessor; another one is another variant.
    """

    path: str
    digest: str

    @property
    def on_gpu(self) -> bool:
        """Whether these are CUDA kernels, for the GPU executor's GPU alone."""
        return self.path.endswith(".cu")

    @property
    def name(self) -> str:
        """What active_cpu_variant() says while it is in force."""
        return f"{Path(self.path).name[-100:]}@{self.digest[:8]}"


def is_variant_file(name: str) -> bool:
    """Whether a CPU variant is named by a file instead of a word ("avx2")."""
    return "." in name or os.sep in name


def prepare_variant(path: str | os.PathLike[str]) -> Variant:
    """Compile a file and compare it with float64; quick where that was done before.

    Raises:
        ConfigError: no such file, it does not compile, or it computes wrong results.
        BackendError: there is no compiler, or the file was made for another ABI.
    """
    source = Path(path).expanduser().absolute()
    variant = Variant(str(source), _digest(source))
    library = _compile(variant)
    stamp = library.with_suffix(".tested")
    if not stamp.exists():
        check_in_child("variant_check", source.name, [str(library), variant.name])
        stamp.touch()
    return variant


def use_kernels(kernels: "Variant | str | None") -> None:
    """Put kernels in force in this process: a tested variant, a built-in one by name, or None.

    None leaves things as they are, but ends what an earlier call chose.

    Raises:
        ConfigError: the file changed since it was tested.
        BackendError: a variant this machine does not offer.
    """
    global _chosen  # noqa: PLW0603 - the C table it mirrors is process-wide too
    if kernels is None:
        if _chosen:
            force_cpu_variant(None)
        _chosen = False
        return
    if isinstance(kernels, str):
        force_cpu_variant(kernels)
    elif kernels.on_gpu:
        return  # the device loads it, with its plug-in
    else:
        load_variant(kernels)
        force_cpu_variant(kernels.name)
    _chosen = True


_chosen = False


def load_variant(variant: Variant) -> None:
    """Make a prepared variant known to force_cpu_variant, by its name.

    Raises:
        ConfigError: the file changed since it was tested.
        BackendError: it does not open.
    """
    digest = _digest(Path(variant.path))
    if digest != variant.digest:
        raise ConfigError(f"{variant.path} changed since it was tested; launch the engine again")
    load_cpu_variant(str(_compile(variant)), variant.name)


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def run_compiler(command: list[str], source: Path, way_out: str = "install gcc or set CC") -> str:
    """Standard output of a compiler; BackendError: there is none, ConfigError: its first error."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_S, check=False
        )
    except (FileNotFoundError, PermissionError) as error:
        raise BackendError(
            f"{source.name} needs a compiler and {command[0]!r} cannot be run; {way_out}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{source.name} did not compile in {COMPILE_S} s") from error
    if done.returncode:
        lines = done.stderr.splitlines() or ["the compiler gave no reason"]
        first = next((line for line in lines if "error" in line), lines[-1])
        raise ConfigError(f"{source.name} does not compile: {first}")
    return done.stdout


def _command() -> list[str]:
    native = Path(hotcold.native.__file__).parent
    return [*_compiler(), *FLAGS, f"-I{native}", f"-I{native / 'abi'}"]


def _digest(source: Path) -> str:
    """Hash of what the compiler sees, headers included."""
    if not source.is_file():
        raise ConfigError(f"there is no kernel file {str(source)!r}; give a C file")
    text = run_compiler([*_command(), "-E", "-P", str(source)], source)
    return hashlib.sha256(text.encode()).hexdigest()


def _compile(variant: Variant) -> Path:
    """The shared object of a variant on this machine, compiled unless the cache has it."""
    source = Path(variant.path)
    version = run_compiler([*_compiler(), "--version"], source)
    return cached_library(
        source,
        [variant.digest, *_command(), version, _cpu()],
        lambda to: run_compiler([*_command(), str(source), "-o", str(to), "-lm"], source),
    )


def cached_library(source: Path, key: list[str], build: Callable[[Path], object]) -> Path:
    """A library in the user's cache, named as its source; `build` writes it unless it is there.

    Raises:
        KernelError: the cache cannot be written.
    """
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:20]
    folder = cache_folder() / "kernels"
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem)[:40].strip("-")
    library = folder / f"{name or 'variant'}-{digest}.so"
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
            fresh = Path(temporary) / "variant.so"
            build(fresh)
            fresh.replace(library)
    except OSError as error:
        raise KernelError(
            f"cannot write the compiled {source.name} to {folder} ({error.strerror}); free space "
            "there or set HOTCOLD_CACHE"
        ) from error
    return library


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    kept = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return platform.machine() + "\n".join(sorted(set(kept)))


def check_in_child(module: str, file: str, arguments: list[str]) -> None:
    """Compare a kernel file with float64 in a fresh process: main() of a module of kernel_checks.

    Raises:
        ConfigError: wrong results, a crash or a hang, with the case.
        BackendError: it does not open there.
    """
    module = f"hotcold.runtime.offline.kernel_checks.{module}"
    command = [sys.executable, "-c", _CHILD, json.dumps(sys.path), module, *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "HOTCOLD_CPU"}
    with tempfile.TemporaryFile("w+") as said:
        try:
            code = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                timeout=CHECK_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        said.seek(0)
        lines = said.read().splitlines() or ["nothing"]
    if code == 0:
        return
    if code is None:
        raise ConfigError(f"{file} is refused: not done after {CHECK_S} s in {lines[-1]}")
    if code < 0:
        raise ConfigError(
            f"{file} is refused: it ended with {signal.Signals(-code).name} in {lines[-1]}; it may "
            "read past the end of a row"
        )
    kind = BackendError if lines[-1].startswith("BackendError") else ConfigError
    raise kind(f"{file} is refused: {lines[-1].partition(': ')[2] or lines[-1]}")
