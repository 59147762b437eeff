"""The rooms: arrows one way, no cycles, and each room imports what its docstring says it may.

native <- runtime <- policies <- actors. Imports inside functions and those for types count.
"""

from pathlib import Path

import pytest
from support import house
from support.checkout import PACKAGES, ROOT, tracked_under

MAX_FILES = 15
MAX_IN_A_ROOT = 6
FULL = {
    "native/cuda/kernels": "one operator a file, with the headers that graph and prompt share",
    "native/loop": "one resident loop: a file for each thing it does between and in passes",
    "runtime/offline/plant": "one pipeline in 17 small steps, of which no part stands alone",
}


@pytest.fixture(scope="module")
def python_edges() -> list[house.Edge]:
    return house.imports(ROOT)


@pytest.fixture(scope="module")
def c_edges() -> list[house.Edge]:
    return house.includes(ROOT)


def listed(wrong: list[house.Edge] | list[str]) -> str:
    return "\n".join(dict.fromkeys(map(str, wrong)))


def test_imports_point_one_way(python_edges: list[house.Edge]) -> None:
    wrong = house.against_the_arrows(python_edges)
    assert not wrong, f"{' <- '.join(house.ORDER)}:\n{listed(wrong)}"


def test_only_actors_know_ray() -> None:
    wrong = house.outside_imports(ROOT, "ray", allowed="actors")
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("folders", [False, True], ids=["modules", "packages"])
def test_no_cycle_in_python(python_edges: list[house.Edge], folders: bool) -> None:
    wrong = house.on_cycles(python_edges, folders=folders)
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("folders", [False, True], ids=["files", "folders"])
def test_no_cycle_in_c(c_edges: list[house.Edge], folders: bool) -> None:
    wrong = house.on_cycles(c_edges, folders=folders)
    assert not wrong, listed(wrong)


def test_what_a_cuda_header_declares_is_defined_beside_it() -> None:
    """Else folders need each other behind the includes; C is checked by its symbols."""
    wrong = house.defined_elsewhere(ROOT, "native/cuda")
    assert not wrong, listed(wrong)


def test_each_room_says_what_it_imports() -> None:
    wrong = house.broken_laws(ROOT)
    assert not wrong, listed(wrong)


def test_each_c_folder_says_what_it_includes() -> None:
    wrong = house.broken_include_laws(ROOT)
    assert not wrong, listed(wrong)


def test_a_room_is_not_crowded() -> None:
    files: dict[str, int] = {}
    for path in house.python_files(ROOT) + house.c_files(ROOT):
        if path.name != "__init__.py":
            files[path.parent.as_posix()] = files.get(path.parent.as_posix(), 0) + 1
    crowded = {room: n for room, n in files.items() if n > MAX_FILES}
    assert crowded.keys() == FULL.keys(), f"over {MAX_FILES} files, or a reason too many: {crowded}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_root_is_nearly_empty(package: str) -> None:
    files = [path.name for path in tracked_under(package) if len(path.parts) == 2]
    files.remove("py.typed")  # which is empty
    assert len(files) <= MAX_IN_A_ROOT, files


# ---- each check finds what it is for ------------------------------------------------------------


def tree(root: Path, **files: str) -> Path:
    """A checkout of these files; `native_abi_x_h` is native/abi/x.h."""
    for key, text in files.items():
        *folders, name, suffix = key.replace("__init__", "INIT").split("_")
        path = root.joinpath(*folders, f"{name.replace('INIT', '__init__')}.{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    "line",
    [
        "import hotcold.actors.a",
        "def f():\n    from hotcold.actors import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hotcold.actors.a import x",
        "from ..actors import a",
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path: Path, line: str) -> None:
    root = tree(tmp_path, runtime_b_py=line, actors_a_py="")
    wrong = house.against_the_arrows(house.imports(root))
    assert listed(wrong) == f"runtime/b.py:{line.count(chr(10)) + 1}: actors/a.py"


def test_ray_is_found_outside_actors(tmp_path: Path) -> None:
    root = tree(tmp_path, runtime_b_py="\nfrom ray import get", actors_a_py="import ray")
    assert house.outside_imports(root, "ray", allowed="actors") == ["runtime/b.py:2: ray"]


def test_cycles_of_modules_and_of_packages_are_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        runtime_a_one_py="from hotcold.runtime.b import two",
        runtime_b_two_py="\ndef f():\n    import hotcold.runtime.a.three",
        runtime_a_three_py="",
    )
    edges = house.imports(root)
    assert not house.on_cycles(edges, folders=False)
    assert listed(house.on_cycles(edges, folders=True)) == (
        "runtime/a/one.py:1: runtime/b/two.py\nruntime/b/two.py:3: runtime/a/three.py"
    )
    edges.append(house.Edge(Path("runtime/b/two.py"), 9, Path("runtime/a/one.py")))
    assert {edge.line for edge in house.on_cycles(edges, folders=False)} == {1, 9}


def test_cycles_of_headers_and_of_folders_are_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        native_a_x_h='#include "b/y.h"\n#include <stdio.h>',
        native_b_y_h="",
        native_b_z_c='\n#include "a/x.h"',
    )
    assert not house.on_cycles(house.includes(root), folders=False)
    assert listed(house.on_cycles(house.includes(root), folders=True)) == (
        "native/a/x.h:1: native/b/y.h\nnative/b/z.c:2: native/a/x.h"
    )
    tree(root, native_b_y_h='#include "a/x.h"')
    assert len(house.on_cycles(house.includes(root), folders=False)) == 2


def test_a_definition_in_another_folder_is_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        native_cuda_a_x_h="[[noreturn]] void fail(int error, // why\n int more);\nint own(int);",
        native_cuda_a_x_cu="int own(int x) {\n}",
        native_cuda_b_y_cu="void fail(int error, int more) {\n}",
    )
    assert house.defined_elsewhere(root, "native/cuda") == [
        "native/cuda/a/x.h: fail is defined in native/cuda/b/y.cu"
    ]


def test_a_docstring_that_rots_is_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        native___init___py='"""C.\n\nMay import: nothing\n"""',
        runtime___init___py='"""Top.\n\nMay import: nothing\n"""',
        runtime_a___init___py='"""A.\n\nMay import: native, policies\n"""',
        runtime_a_one_py="import hotcold.native\n\nfrom hotcold.runtime.b import two",
        runtime_b___init___py='"""B."""',
        runtime_b_two_py="",
    )
    assert house.broken_laws(root) == [
        "runtime/a/one.py:3: runtime/b/two.py (runtime/a/__init__.py does not list runtime.b)",
        "runtime/a/__init__.py: nothing needs policies",
        "runtime/b/__init__.py: no line `May import: nothing`",
    ]
    assert house.law_of("actors", ["runtime.a", "runtime.b", "native"]) == (
        "native, runtime.a, runtime.b"
    )
    assert house.law_of("actors", ["runtime", "runtime.a", "runtime.b", "runtime.c"]) == "runtime.*"


def test_a_c_folder_that_includes_more_is_found(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        native___init___py='"""C.\n\n    a: first\n    b: second <- c\n    d: none\n"""',
        native_a_x_c='#include "c/y.h"',
        native_b_x_c="",
        native_c_y_h="",
    )
    assert house.broken_include_laws(root) == [
        "native/__init__.py: no line for the folder c",
        "native/__init__.py: there is no folder d",
        "native/a/x.c:1: native/c/y.h (native/__init__.py does not list c for a)",
        "native/__init__.py: nothing in b needs c",
    ]
