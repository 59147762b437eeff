"""CUDA kernels of one's own: a .cu file becomes a library that is tested before it is used.

As variant.py does with C files: compiled by nvcc into the user's cache under a key of its text
after the preprocessor, compiler and GPU architecture; its ABI number compared by the plug-in
(kernels/variant.cu); every operator, and passes of the embedded model, compared with float64 in a
process of its own (`cuda_variant_check`). The GPU executor compiles and loads it itself. The guide
is examples/07_own_cuda_kernel.cu.
"""

import hashlib
import os
from pathlib import Path

import hotcold.native
from hotcold.native.errors import BackendError, ConfigError
from hotcold.native.gpu import cuda_plugin
from hotcold.runtime.engine.variant import Variant, cached_library, check_in_child, run_compiler

_WAY_OUT = "install the CUDA toolkit"


def prepare_cuda_variant(path: str | os.PathLike[str]) -> Variant:
    """Compile a file and compare it with float64; quick where that was done before.

    Raises:
        ConfigError: no such file, it does not compile, or it computes wrong results.
        BackendError: there is no GPU, plug-in or nvcc, or the file was made for another ABI.
    """
    source = Path(path).expanduser().absolute()
    if not source.is_file():
        raise ConfigError(f"there is no kernel file {str(source)!r}; give a CUDA file")
    plugin = cuda_plugin.find()
    if plugin is None:
        raise BackendError(
            f"{source.name} holds CUDA kernels and there is no GPU here to test and run them on; "
            "`hotcold doctor` says what is missing, a .c file needs none"
        )
    variant = Variant(str(source), _digest(source))
    library = _compile(variant)
    stamp = library.with_suffix(".tested")
    if not stamp.exists():
        arguments = [str(plugin.path), str(library), variant.path, variant.digest]
        check_in_child("cuda_variant_check", source.name, arguments)
        stamp.touch()
    return variant


def variant_library(variant: Variant) -> Path:
    """The library of a prepared variant on this machine.

    Raises:
        ConfigError: the file changed since it was tested.
        BackendError: there is no nvcc.
    """
    if _digest(Path(variant.path)) != variant.digest:
        raise ConfigError(f"{variant.path} changed since it was tested; launch the engine again")
    return _compile(variant)


def _compiler() -> str:
    found = cuda_plugin.find_compiler()
    if found is None:
        raise BackendError(f"a CUDA variant needs nvcc and none is found; {_WAY_OUT}")
    return found


def _command() -> list[str]:
    folder = Path(hotcold.native.__file__).parent / "cuda" / "kernels"
    arch = f"-arch=sm_{cuda_plugin.architecture()}"
    return [_compiler(), *cuda_plugin.FLAGS, arch, f"-I{folder}"]


def _digest(source: Path) -> str:
    """Hash of what the compiler sees, headers included."""
    if not source.is_file():
        raise ConfigError(f"there is no kernel file {str(source)!r}; give a CUDA file")
    text = run_compiler([*_command(), "-E", str(source)], source, _WAY_OUT)
    lines = [line for line in text.splitlines() if not line.startswith("#")]  # line marks: paths
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _compile(variant: Variant) -> Path:
    source = Path(variant.path)
    version = run_compiler([_compiler(), "--version"], source, _WAY_OUT)
    return cached_library(
        source,
        [variant.digest, *_command(), version],
        lambda to: run_compiler([*_command(), str(source), "-o", str(to)], source, _WAY_OUT),
    )
