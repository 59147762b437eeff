"""No cycle of C files or folders, by the symbols that a linker would see."""

import shutil
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.checkout import ROOT

Graph = dict[str, set[str]]


def compiled(source: Path, into: Path) -> Path:
    target = into / f"{source.parent.name}.{source.stem}.o"
    command = ["cc", "-std=gnu11", "-O0", "-w", f"-I{ROOT / 'native'}", "-c"]
    subprocess.run([*command, str(source), "-o", str(target)], check=True)
    return target


def symbols(path: Path) -> tuple[set[str], set[str]]:
    """Names that an object file defines, and those it needs."""
    listed = subprocess.run(["nm", "-g", str(path)], check=True, capture_output=True, text=True)
    defined, needed = set(), set()
    for line in listed.stdout.splitlines():
        *_, kind, name = line.split()
        (needed if kind == "U" else defined).add(name)
    return defined, needed


def uses(objects: dict[str, tuple[set[str], set[str]]]) -> Graph:
    """For every file the files whose symbols it needs."""
    owner = {name: file for file, (defined, _) in objects.items() for name in defined}
    return {
        file: {owner[name] for name in needed if name in owner} - {file}
        for file, (_, needed) in objects.items()
    }


def folders(files: Graph) -> Graph:
    """The same of their folders."""
    made: Graph = {}
    for file, used in files.items():
        own = made.setdefault(file.partition("/")[0], set())
        own |= {other.partition("/")[0] for other in used} - {file.partition("/")[0]}
    return made


def cycle(graph: Graph) -> list[str]:
    """Names along a cycle; empty: there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    if shutil.which("nm") is None:
        pytest.skip("no nm on this machine")
    into, native = tmp_path_factory.mktemp("objects"), ROOT / "native"
    sources = sorted(native.glob("*/*.c"))
    made = {
        source.relative_to(native).as_posix(): symbols(compiled(source, into)) for source in sources
    }
    return uses(made)


def test_no_c_file_uses_one_that_uses_it(graph: Graph) -> None:
    assert len(graph) > 20
    assert cycle(graph) == []


def test_no_c_folder_uses_one_that_uses_it(graph: Graph) -> None:
    assert cycle(folders(graph)) == []


def test_a_cycle_is_found() -> None:
    objects = {"a/x.c": ({"x"}, {"y"}), "b/y.c": ({"y"}, {"z"}), "a/z.c": ({"z"}, set[str]())}
    assert cycle(uses(objects)) == []
    assert set(cycle(folders(uses(objects)))) == {"a", "b"}
    objects["a/z.c"] = ({"z"}, {"x"})
    assert set(cycle(uses(objects))) == {"a/x.c", "b/y.c", "a/z.c"}
