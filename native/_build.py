"""Build the C kernels with cffi in API mode, from the headers that both compilers check.

The headers of abi/ are the one source of every constant, name and layout: the same build writes
them down in Python, as abi/generated.py, and lets the C compiler check each figure of it.

setuptools calls `BuildNative` (pyproject: `[tool.setuptools.cmdclass]`), so there is no setup.py.
`python native/_build.py [--into=FOLDER] [FLAGS]` builds the module for people who work on the
kernels, by default in place.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
MODULE = "hotcold.native._kernels"
ABI = "hotcold.native.abi"
HEADERS = ("hotcold.h", "moves.h", "predict.h", "request.h", "gpu.h", "layout.h", "operate.h")
ROW = r"X\((\w+), +(.+?), +(.+?), +([01])\)"  # of abi/activations.h: name, fires, value, both
FLAGS = "-std=gnu11 -O3 -Wall -Wextra -pthread -fno-math-errno -ffp-contract=off".split()


def declarations(header: Path) -> str:
    """The text between the two cffi marks of the header."""
    text = header.read_text(encoding="ascii")
    return text.split("/* cffi: begin */", 1)[1].split("/* cffi: end */", 1)[0]


def declared() -> tuple[FFI, str]:
    """What the headers declare, as cffi understands it, and their text."""
    members = ", ".join(f"HC_ACTIVATION_{name}" for name, *_ in activations())
    texts = [f"typedef enum {{ {members} }} hc_activation;"]
    ffi, texts = FFI(), texts + [declarations(HERE / "abi" / name) for name in HEADERS]
    for text in texts:
        ffi.cdef(text)
    return ffi, "\n".join(texts)


def activations() -> list[tuple[str, ...]]:
    """The rows of abi/activations.h."""
    return re.findall(ROW, (HERE / "abi" / "activations.h").read_text(encoding="ascii"))


def sources() -> list[Path]:
    """Every C file of this folder, in a fixed order."""
    return sorted(HERE.glob("*/*.c"))


# ---- abi/generated.py: the headers in Python -----------------------------------------------------


def constants(text: str) -> dict[str, int]:
    """The #defined whole numbers."""
    return {name: int(value) for name, value in re.findall(r"#define (HC_\w+) +(\d+)", text)}


def structs(ffi: FFI) -> dict[str, Any]:
    """The structs that have fields, each after those it holds."""
    found: dict[str, Any] = {}

    def add(name: str, ctype: Any) -> None:  # noqa: ANN401 - of cffi
        for _, field in ctype.fields:
            inner = field.type.item if field.type.kind == "array" else field.type
            if inner.kind == "struct":
                add(c_name(inner), inner)
        found.setdefault(name, ctype)

    for name in sorted({*ffi.list_types()[0], *ffi.list_types()[1]}):
        ctype = ffi.typeof(name if name in ffi.list_types()[0] else f"struct {name}")
        if ctype.kind == "struct" and ctype.fields:
            add(c_name(ctype), ctype)
    return found


def enums(ffi: FFI) -> dict[str, dict[str, int]]:
    """Members by C name, of every enum in order of its members' values."""
    types = [ffi.typeof(name) for name in ffi.list_types()[0]]
    return {
        c_name(ctype): dict(sorted(ctype.relements.items(), key=lambda member: member[1]))
        for ctype in types
        if ctype.kind == "enum"
    }


def c_name(ctype: Any) -> str:  # noqa: ANN401 - of cffi
    """The name of a struct or enum without its keyword."""
    return str(ctype.cname).removeprefix("struct ").removeprefix("enum ")


def numpy_format(ffi: FFI, ctype: Any) -> str:  # noqa: ANN401 - of cffi
    """Python text of the numpy format of a field; addresses are whole numbers."""
    if ctype.kind == "array" and ctype.item.cname == "char":
        return f'"S{ctype.length}"'
    if ctype.kind == "array":
        return f"({numpy_format(ffi, ctype.item)}, ({ctype.length},))"
    if ctype.kind == "struct":
        return python_name(c_name(ctype)).upper()
    size = ffi.sizeof(ctype)
    if ctype.kind == "primitive" and ctype.cname in ("float", "double"):
        return f'"f{size}"'
    signed = ctype.kind == "primitive" and not ctype.cname.startswith("u")
    return f'"{"i" if signed else "u"}{size}"'


def python_name(name: str) -> str:
    """A C name without hotcold's prefix."""
    return re.sub("^HC_", "", name, flags=re.I)


def python_module(ffi: FFI, text: str) -> str:
    """The text of abi/generated.py."""
    lines = [
        '"""The ABI of native/abi/*.h in Python: written by native/_build.py, not to be edited."""',
        "",
        "from collections.abc import Callable",
        "from enum import IntEnum",
        "from math import erfc",
        "from typing import Any, Final, NamedTuple",
        "",
        "import numpy as np",
        "",
    ]
    lines += [f"{python_name(name)}: Final = {value}" for name, value in constants(text).items()]
    for name, members in enums(ffi).items():
        prefix = os.path.commonprefix(list(members)).rpartition("_")[0] + "_"
        title = "".join(part.title() for part in python_name(name).split("_"))
        lines += ["", "", f"class {title}(IntEnum):", f'    """{name}."""', ""]
        lines += [f"    {key.removeprefix(prefix)} = {value}" for key, value in members.items()]
    for name, ctype in structs(ffi).items():
        columns = {
            "names": [f'"{key}"' for key, _ in ctype.fields],
            "formats": [numpy_format(ffi, field.type) for _, field in ctype.fields],
            "offsets": [str(field.offset) for _, field in ctype.fields],
        }
        lines += ["", f"{python_name(name).upper()}: np.dtype[np.void] = np.dtype(", "    {"]
        lines += [f'        "{key}": [{", ".join(of)}],' for key, of in columns.items()]
        lines += [f'        "itemsize": {ffi.sizeof(ctype)},', "    }", ")"]
    return "\n".join([*lines, *activation_table(), *functions(), ""])


def activation_table() -> list[str]:
    """The rows of abi/activations.h as Python: their expressions mean the same there."""
    lines = ["", "", "def expf(x: Any) -> Any:"]
    lines += ['    """As in C, of a number, an array or a tensor."""']
    lines += ['    with np.errstate(over="ignore"):']
    lines += ['        return x.exp() if hasattr(x, "exp") else np.exp(x)', "", ""]
    lines += ["def erfcf(x: Any) -> Any:", '    """Likewise."""']
    lines += ["    each = np.vectorize(erfc, otypes=[np.float64])"]
    lines += ['    return x.erfc() if hasattr(x, "erfc") else each(x)[()]', "", ""]
    lines += ["class ActivationRow(NamedTuple):"]
    lines += ['    """Of gate pre-activations g, a threshold t: numbers, arrays or tensors."""', ""]
    lines += ["    fires: Callable[[Any, float], Any]", "    value: Callable[[Any], Any]"]
    lines += ["    both: bool", "", "", "ACTIVATION_ROWS: Final = {"]
    for name, fires, value, both in activations():
        row = f"lambda g, t: {fires}, lambda g: {value}, {both == '1'}"
        lines += [f"    Activation.{name}: ActivationRow({row}),"]
    return [*lines, "}"]


def functions() -> list[str]:
    """The header's macros with parameters: sums and products of whole numbers, as C has them."""
    text = (HERE / "abi" / HEADERS[0]).read_text(encoding="ascii").replace("\\\n", " ")
    lines = []
    for name, given, body in re.findall(r"#define HC_(\w+)\((.*?)\) +(.*)", text):
        parameters = ", ".join(f"{one}: int" for one in filter(None, given.split(", ")))
        sizes = re.sub(r"sizeof\(hc_(\w+)\)", lambda of: f"{of[1].upper()}.itemsize", body)
        calls = re.sub(r"HC_(\w+)\(", lambda of: f"{of[1].lower()}(", sizes)
        whole = re.sub(" +", " ", calls.replace("HC_", "").replace(" / ", " // ")).strip()
        lines += ["", "", f"def {name.lower()}({parameters}) -> int:"]
        lines += [f'    """HC_{name}."""', f"    return {whole}"]
    return lines


def write_python(folder: Path) -> Path:
    """Write generated.py of the headers into a folder."""
    target = folder / "generated.py"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / ".fresh_generated.py"
    fresh.write_text(python_module(*declared()), encoding="ascii")
    fresh.replace(target)  # whoever imports meanwhile gets the old one or the new one
    return target


def assertions(ffi: FFI, text: str) -> list[str]:
    """C lines by which the compiler refuses a generated.py that says other than it does itself."""
    said = [f"{name} == {value}" for name, value in constants(text).items()]
    for name, ctype in structs(ffi).items():
        full = f"struct {name}" if ctype.cname.startswith("struct") else name
        said.append(f"sizeof({full}) == {ffi.sizeof(ctype)}")
        said += [f"offsetof({full}, {key}) == {field.offset}" for key, field in ctype.fields]
    for members in enums(ffi).values():
        said += [f"{key} == {value}" for key, value in members.items()]
    return [f'_Static_assert({one}, "{one}");' for one in said]


# ---- the module ----------------------------------------------------------------------------------


def emit_glue(folder: Path) -> Path:
    """Write cffi's glue for the headers into folder and return its path."""
    ffi, text = declared()
    includes = [f'#include "abi/{name}"' for name in HEADERS]
    ffi.set_source(MODULE, "\n".join([*includes, *assertions(ffi, text)]), py_limited_api=True)
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
            here = self.inplace or self.editable_mode  # an editable install imports from here
            write_python(HERE / "abi" if here else Path(self.build_lib, *ABI.split(".")))
        super().build_extension(ext)


def build_in_place(extra: tuple[str, ...] = (), folder: Path = HERE) -> Path:
    """Compile with cc into folder, by default beside the sources; nothing is installed."""
    import sysconfig

    temp = HERE.parent / "build" / "native"
    glue = emit_glue(temp)
    write_python(HERE / "abi")
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
