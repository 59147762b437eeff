"""The generated module says what the compiled one does, and is refused where it would not."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from support.abi_mirrors import places
from support.checkout import ROOT

from hotcold.native.abi import generated, names
from hotcold.native.bindings._ffi import check, failure, ffi, lib
from hotcold.native.bindings.device import NativeDevice
from hotcold.native.errors import (
    BackendError,
    BudgetError,
    ConfigError,
    KernelError,
)
from hotcold.runtime.model.spec import Activation, DType, Norm
from hotcold.runtime.plan.dag import Kind

STRUCTS = [name.lower() for name, of in vars(generated).items() if isinstance(of, np.dtype)]


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_native", ROOT / "native" / "_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_constant_and_member_is_the_compiled_one() -> None:
    found = {f"HC_{name}" for name in vars(generated) if hasattr(lib, f"HC_{name}")}
    assert {"HC_ABI_VERSION", "HC_MAX_BATCH", "HC_CACHE_LINE", "HC_DRIVER"} <= found
    for name in found:
        assert getattr(generated, name[3:]) == getattr(lib, name)
    members = [
        member
        for kind in vars(generated).values()
        if isinstance(kind, type) and issubclass(kind, IntEnum) and kind is not IntEnum
        for member in kind
    ]
    constants = {name: getattr(lib, name) for name in dir(lib) if name.startswith("HC_")}
    left = {name: value for name, value in constants.items() if name not in found}
    assert len(members) == len(left) > 70
    for member in members:
        assert member.value in {
            value for name, value in left.items() if name.endswith(member.name)
        }, member


@pytest.mark.parametrize("name", STRUCTS)
def test_every_field_lies_where_the_compiler_put_it(name: str) -> None:
    keyword = "struct " if name == "predictor_layer" else ""
    compiled, written = ffi.typeof(f"{keyword}hc_{name}"), getattr(generated, name.upper())
    assert written.itemsize == ffi.sizeof(compiled)
    fields = {key: (field.offset, ffi.sizeof(field.type)) for key, field in compiled.fields}
    assert {key: (offset, of.itemsize) for key, (of, offset) in written.fields.items()} == fields


def test_numpy_and_c_read_the_same_bytes() -> None:
    step = np.zeros(2, generated.STEP)
    waits, lists, sums = tuple(range(8)), (64, 128, 3, 4, 5, 6, 7), (-1, -9, 1, 2, 3, 4, 5)
    counts = (1, 2, 3, 1 << 41), (4, 5, 6, 7)
    step[1] = (3, -1, 4, waits, 5, 2, 1 << 40, lists, sums, *counts)
    c = ffi.cast("hc_step *", step.ctypes.data)[1]
    assert (c.op, c.layer, c.device, c.signal, c.flags) == (3, -1, 4, 5, 2)
    assert (c.x, *map(tuple, (c.wait, c.active, c.y))) == (1 << 40, waits, lists, sums)
    assert (list(c.bytes), list(c.flops)) == ([1, 2, 3, 1 << 41], [4, 5, 6, 7])


@pytest.mark.parametrize("capacity", [0, 1, 15, 16, 17, 700])
def test_macros_are_the_same_functions(capacity: int) -> None:
    room = np.zeros(generated.active_bytes(capacity, 32) + 64, np.uint8)
    one = ffi.cast("hc_active *", room.ctypes.data)
    one.capacity = capacity
    base = int(ffi.cast("intptr_t", one))
    parts = (lib.hc_active_ids, lib.hc_active_members, lib.hc_active_gate)
    found = [int(ffi.cast("intptr_t", part(one))) - base for part in parts]
    assert found == [
        generated.active_ids(),
        generated.active_members(capacity),
        generated.active_gate(capacity),
    ]
    gates = -(-capacity * 3 * 4 // 64) * 64  # whole cache lines
    assert generated.active_bytes(capacity, 3) == generated.active_gate(capacity) + gates
    assert generated.active_bytes(capacity, 0) == generated.active_gate(capacity)


def test_the_compiler_refuses_a_wrong_figure(tmp_path: Path) -> None:
    build = builder()
    said = build.assertions(*build.declared())
    assert any("offsetof(hc_step, active) ==" in line for line in said)

    def compiles(lines: list[str]) -> bool:
        source = tmp_path / "check.c"
        includes = [f'#include "abi/{name}"' for name in build.HEADERS]
        source.write_text("\n".join([*includes, *lines]))
        command = ["cc", "-fsyntax-only", f"-I{ROOT / 'native'}", str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert compiles(said)
    for figure in ("sizeof(hc_flag) == 64", "HC_STEP_HOT == 4", "offsetof(hc_step, y) == 120"):
        assert any(figure in line for line in said)
        assert not compiles([line.replace(figure, f"{figure}1") for line in said])


def test_words_are_those_that_types_and_users_know() -> None:
    assert tuple(names.ROLES) == ("leader", "worker", "predictor")
    assert names.OPS == ("embed", "attention", "predict", "hot", "cold", "merge", "head", "input")
    assert set(get_args(Kind)) == {*names.OPS, "fetch"} - {"embed", "head"}
    assert get_args(DType) == names.WEIGHT_DTYPES and get_args(Norm) == tuple(names.NORMS)
    assert get_args(Activation) == tuple(names.ACTIVATIONS)
    assert names.DTYPE_BYTES == {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
    for codes, kind in ((names.ROLES, generated.Role), (names.OPS, generated.Op)):
        assert [member.value for member in kind] == list(range(len(codes)))


def outcome(code: str, *path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in path]}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    return done.stderr


def test_what_is_said_without_a_build(tmp_path: Path) -> None:
    target = tmp_path / "hotcold" / "native"
    shutil.copytree(ROOT / "native" / "abi", target / "abi", ignore=lambda *_: ["generated.py"])
    shutil.copy(ROOT / "native" / "__init__.py", target)
    said = outcome("import hotcold.native.abi.names", tmp_path)
    assert "(hotcold.native.abi.generated is missing)" in said and "make setup" in said


def test_modules_of_two_builds_are_refused() -> None:
    code = "import hotcold.native.abi.generated as g; g.ABI_VERSION = 99; "
    said = outcome(code + "import hotcold.native.bindings._ffi")
    assert f"has ABI {generated.ABI_VERSION}, hotcold.native.abi.generated 99" in said


# ---- errors --------------------------------------------------------------------------------------


def test_a_status_stands_for_one_class_whatever_its_text() -> None:
    wanted = {
        generated.Status.ERR_ARGUMENT: ConfigError,
        generated.Status.ERR_MEMORY: MemoryError,
        generated.Status.ERR_UNSUPPORTED: BackendError,
        generated.Status.ERR_BUDGET: BudgetError,
        generated.Status.ERR_GPU_MEMORY: BudgetError,
        generated.Status.ERR_PINNED: BudgetError,
    }
    for status in generated.Status:
        error = ffi.new("hc_error *", {"status": status, "text": b"raise --vram, no memory"})
        assert type(failure(error)) is wanted.get(status, KernelError)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plug-in without a GPU (still_device.c), which can be told to fail."""
    library = tmp_path_factory.mktemp("plugin") / "still.so"
    source = ROOT / "tests" / "support" / "still_device.c"
    command = ["cc", "-shared", "-fPIC", f"-I{ROOT / 'native'}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


def made(plugin: Path, status: int, value: int, limit: int) -> NativeDevice:
    """What becomes of a device whose creation fails with an error of these fields."""
    loaded = ctypes.CDLL(str(plugin))
    size = generated.ERROR.itemsize
    failing = np.frombuffer((ctypes.c_char * size).in_dll(loaded, "failing"), generated.ERROR)
    failing[0] = (status, value, limit, b"the device says no")
    model = ffi.new("hc_model *", {"n_layers": 1})
    args = ffi.new("hc_executor_args *", {"model": model, "max_batch": 1})
    try:
        return NativeDevice(args, plugin, n_chunks=1, bounds_LC=np.zeros((1, 2), np.int32))
    finally:
        failing[0] = (0, 0, 0, b"")


def test_a_budget_crosses_with_its_figures(plugin: Path) -> None:
    with pytest.raises(BudgetError, match="needs 5000 .* leaves 4096; raise --vram") as caught:
        made(plugin, generated.Status.ERR_BUDGET, 5000, 4096)
    assert (caught.value.needed_bytes, caught.value.budget_bytes) == (5000, 4096)


def test_other_failures_of_a_device(plugin: Path) -> None:
    with pytest.raises(BudgetError, match="no, 1 of 8 MiB of the GPU are free; lower --vram"):
        made(plugin, generated.Status.ERR_GPU_MEMORY, 1 << 20, 8 << 20)
    with pytest.raises(BudgetError, match="3 MiB were asked for: raise --vram") as caught:
        made(plugin, generated.Status.ERR_PINNED, 3 << 20, 0)
    assert caught.value.needed_bytes == 3 << 20
    with pytest.raises(BackendError, match="the device says no"):
        made(plugin, generated.Status.ERR_SYSTEM, 0, 0)


def test_an_error_stays_until_the_next_one() -> None:
    assert lib.hc_attention(ffi.NULL, ffi.NULL) == generated.Status.ERR_ARGUMENT
    assert lib.hc_last_error().status == generated.Status.ERR_ARGUMENT
    check(generated.Status.OK)
    assert "attention: q" in str(failure())


# ---- one source ----------------------------------------------------------------------------------


def test_no_source_spells_a_number_of_the_headers() -> None:
    assert places(ROOT) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("one.py", "SELECTIVE, ALL = 1, 2"),
        ("one.py", 'codes = {"float32": 0, "float16": 1}'),
        ("one.py", 'WHO: tuple[str, ...] = ("gpu", "cpu", "predictor")'),
        ("one.py", 'if step["op"] == 3: pass'),
        ("one.py", "size = layout.n_flags * 64"),
        ("one.py", 'd = np.dtype([("id", "i4"), ("logprob", "f4"), ("time_ns", "u8")])'),
        ("one.c", "if (a->dtype == 2)"),
        ("one.cu", "wait = report->phase_ns[3];"),
    ],
)
def test_the_count_itself_finds(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / name).write_text(text)
    assert len(places(tmp_path)) == 1
