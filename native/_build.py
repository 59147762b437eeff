"""Build the C kernels with cffi in API mode, from the one header both compilers check.

setuptools calls `BuildNative` (pyproject: `[tool.setuptools.cmdclass]`), so there is no setup.py.
`python native/_build.py [--into=FOLDER] [FLAGS]` builds the module for people who work on the
kernels, by default in place.
"""

import subprocess
import sys
from pathlib import Path

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
MODULE = "hotcold.native._kernels"
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-Wall",
    "-Wextra",
    "-pthread",
    "-fno-math-errno",
    "-ffp-contract=off",
]


def declarations(header: Path) -> str:
    """The text between the two cffi marks of the header."""
    text = header.read_text(encoding="ascii")
    return text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]


def sources() -> list[Path]:
    """Every C file of this folder, in a fixed order."""
    return sorted(HERE.glob("*/*.c"))


def emit_glue(folder: Path) -> Path:
    """Write cffi's glue for the header into folder and return its path."""
    ffi = FFI()
    for header in ("hotcold.h", "predict.h", "gpu.h", "layout.h"):
        ffi.cdef(declarations(HERE / "abi" / header))
    ffi.set_source(MODULE, '#include "abi/hotcold.h"\n#include "abi/layout.h"', py_limited_api=True)
    folder.mkdir(parents=True, exist_ok=True)
    glue = folder / "_kernels_glue.c"
    ffi.emit_c_code(str(glue))
    return glue


class BuildNative(build_ext):
    """build_ext that writes the cffi glue first and compiles it with the kernels."""

    def build_extension(self, ext: Extension) -> None:
        """Fill in what pyproject cannot say, then build as usual."""
        if ext.name == MODULE:
            glue = emit_glue(Path(self.build_temp))
            ext.sources = [str(glue), *(str(path.relative_to(Path.cwd())) for path in sources())]
            ext.depends = [str(path) for path in HERE.rglob("*.h")]
            ext.include_dirs = [str(HERE)]
            ext.extra_compile_args = FLAGS
            ext.extra_link_args = ["-pthread", "-lm", "-ldl"]
            ext.define_macros = [("Py_LIMITED_API", "0x030a0000")]
        super().build_extension(ext)


def build_in_place(extra: tuple[str, ...] = (), folder: Path = HERE) -> Path:
    """Compile with cc into folder, by default beside the sources; nothing is installed."""
    import sysconfig

    temp = HERE.parent / "build" / "native"
    glue = emit_glue(temp)
    target = folder / "_kernels.abi3.so"
    fresh = folder / ".fresh_kernels.so"
    command = ["cc", "-shared", "-fPIC", *FLAGS, *extra, "-DPy_LIMITED_API=0x030a0000"]
    command += [f"-I{HERE}", f"-I{sysconfig.get_paths()['include']}", str(glue)]
    command += [*map(str, sources()), "-o", str(fresh), "-lm", "-ldl"]
    subprocess.run(command, check=True)
    fresh.replace(target)
    return target


if __name__ == "__main__":
    options = sys.argv[1:]
    named = bool(options) and options[0].startswith("--into=")
    into = Path(options.pop(0).removeprefix("--into=")).resolve() if named else HERE
    print(build_in_place(tuple(options), into))
