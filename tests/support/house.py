"""The house as graphs: which module imports which, which header includes which, and the cycles.

Works on any folder that holds the four packages, so that a test can hand it a small tree that is
wrong, and a measurement an older checkout.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ORDER = ("native", "runtime", "policies", "actors")  # each may import those before it
C_SUFFIXES = {".c", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
TOP = "hotcold"


class Edge(NamedTuple):
    """A line of one file that needs another; both as paths relative to the root."""

    source: Path
    line: int
    target: Path
    name: str = ""  # what is imported of it

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.target}"


def python_files(root: Path) -> list[Path]:
    return _files(root, {".py"})


def c_files(root: Path) -> list[Path]:
    return _files(root, C_SUFFIXES)


def _files(root: Path, suffixes: set[str]) -> list[Path]:
    return [
        path.relative_to(root)
        for folder in ORDER
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in suffixes and "__pycache__" not in path.parts
    ]


# ---- Python --------------------------------------------------------------------------------------


def imports(root: Path) -> list[Edge]:
    """Every import of a module of these packages, lazy ones and those for types too.

    One edge a name: `from package import a, b` needs the modules a and b, or, for what is no
    module, the package's own file.
    """
    files = python_files(root)
    by_name = {_module(path): path for path in files}
    return sorted({edge for path in files for edge in _imports_of(root, path, by_name)})


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join((TOP, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def _imports_of(root: Path, path: Path, by_name: dict[str, Path]) -> Iterator[Edge]:
    package = (TOP, *path.parts[:-1])
    for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in by_name else f"{base}:{name}" for name in inner]
        else:
            continue
        for name in names:
            target = by_name.get(name.partition(":")[0])
            if target not in (None, path):
                yield Edge(path, node.lineno, target, name)


def against_the_arrows(edges: Iterable[Edge]) -> list[Edge]:
    """Those which lead from a package to one that may import it."""
    rank = {name: number for number, name in enumerate(ORDER)}
    return [e for e in edges if rank[e.target.parts[0]] > rank[e.source.parts[0]]]


def outside_imports(root: Path, module: str, *, allowed: str) -> list[str]:
    """Every import of somebody else's module in packages other than the one that may."""
    found = []
    for path in python_files(root):
        if path.parts[0] == allowed:
            continue
        for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            if any(name.split(".")[0] == module for name in names):
                found.append(f"{path}:{node.lineno}: {module}")
    return found


# ---- rooms: what each says that it may import ---------------------------------------------------

MAY_IMPORT = re.compile(r"^May import: (.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
MAY_INCLUDE = re.compile(r"^ *([\w/]+): [^<\n]*(?:<- ([\w/, ]+))?$", re.MULTILINE)
STAR_FROM = 4  # `runtime.*` stands for so many rooms of a package below, or more


def room_of(path: Path) -> str:
    return ".".join(path.parent.parts)


def needed(edges: Iterable[Edge]) -> dict[str, dict[str, Edge]]:
    """By room, the rooms that its files import, each with the first line that does."""
    found: dict[str, dict[str, Edge]] = {}
    for edge in between_folders(edges):
        found.setdefault(room_of(edge.source), {}).setdefault(room_of(edge.target), edge)
    return found


def law_of(room: str, rooms: Iterable[str]) -> str:
    """The line that a room's docstring has to hold: the rooms it imports, sorted.

    Rooms of its own package are named one by one; of a package below, four or more are `package.*`.
    """
    names = set(rooms)
    for package in ORDER:
        inside = {name for name in names if name.split(".")[0] == package}
        if package != room.split(".", maxsplit=1)[0] and len(inside) >= STAR_FROM:
            names = (names - inside) | {f"{package}.*"}
    return ", ".join(sorted(names)) or "nothing"


def broken_laws(root: Path) -> list[str]:
    """What is wrong with the line `May import: ...` of each room; names the import or the entry."""
    wrong: list[str] = []
    needs = needed(imports(root))
    for room in sorted({path.parent for path in python_files(root)}):
        name, file = ".".join(room.parts), room / "__init__.py"
        docstring = ""
        if (root / file).is_file():
            docstring = ast.get_docstring(ast.parse((root / file).read_text())) or ""
        law = law_of(name, needs.get(name, {}))
        match = MAY_IMPORT.search(docstring)
        if match is None:
            wrong.append(f"{file}: no line `May import: {law}`")
            continue
        said = set(" ".join(match[1].split()).split(", "))
        for entry in sorted(set(law.split(", ")) - said):
            inside = entry.removesuffix("*").rstrip(".")
            edges = [e for r, e in needs.get(name, {}).items() if r == entry or entry[-1] == "*"]
            edge = next((e for e in edges if room_of(e.target).startswith(inside)), file)
            wrong.append(f"{edge} ({file} does not list {entry})")
        wrong += [f"{file}: nothing needs {entry}" for entry in sorted(said - set(law.split(", ")))]
    return wrong


def broken_include_laws(root: Path) -> list[str]:
    """The same of C folders, a line `folder: purpose <- folders` each in native/__init__.py."""
    file = Path("native/__init__.py")
    docstring = ast.get_docstring(ast.parse((root / file).read_text())) or ""
    said = {
        match[1]: set(match[2].split(", ")) if match[2] else set()
        for match in MAY_INCLUDE.finditer(docstring)
    }
    needs = {
        folder: {to.removeprefix("native."): edge for to, edge in rooms.items()}
        for folder, rooms in needed(includes(root)).items()
    }
    wrong = []
    folders = {str(p.parent.relative_to("native")) for p in c_files(root)}
    wrong += [f"{file}: no line for the folder {f}" for f in sorted(folders - set(said))]
    wrong += [f"{file}: there is no folder {f}" for f in sorted(set(said) - folders)]
    for folder in sorted(folders & set(said)):
        edges = {
            to.replace(".", "/"): edge
            for to, edge in needs.get(f"native.{folder.replace('/', '.')}", {}).items()
        }
        wrong += [
            f"{edges[to]} ({file} does not list {to} for {folder})"
            for to in sorted(set(edges) - said[folder])
        ]
        wrong += [
            f"{file}: nothing in {folder} needs {to}" for to in sorted(said[folder] - set(edges))
        ]
    return wrong


# ---- C and CUDA ----------------------------------------------------------------------------------


def includes(root: Path) -> list[Edge]:
    """Every quoted include of a file that is there, beside the file itself or under native/."""
    found = []
    for path in c_files(root):
        for number, line in enumerate((root / path).read_text().splitlines(), start=1):
            if match := INCLUDE.match(line):
                beside = [path.parent / match[1], Path("native") / match[1]]
                target = next((p for p in beside if (root / p).is_file()), None)
                if target is not None:
                    found.append(Edge(path, number, target))
    return found


COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
DECLARED = re.compile(r"^(?=\S)(?:\[\[\w+\]\] )?[\w:<>*& ]*?[ *&](\w+)\([^(){};]*\);", re.MULTILINE)
DEFINED = re.compile(
    r"^(?=\S)(?!static|inline|template)[\w:<>*& ]*?[ *&](\w+)\([^(){};]*\) \{", re.MULTILINE
)


def defined_elsewhere(root: Path, under: str) -> list[str]:
    """Functions that a header declares and only other folders define: includes hide that need.

    Reads the text, so that no compiler is needed; functions start in the first column here.
    """
    homes: dict[str, set[Path]] = {}
    declared = []
    for path in c_files(root):
        text = COMMENT.sub("", (root / path).read_text())
        if path.suffix in {".c", ".cu"}:
            for match in DEFINED.finditer(text):
                homes.setdefault(match[1], set()).add(path)
        elif path.is_relative_to(under):
            declared += [(match[1], path) for match in DECLARED.finditer(text)]
    return [
        f"{path}: {name} is defined in {', '.join(map(str, sorted(homes[name])))}"
        for name, path in sorted(declared)
        if name in homes and all(home.parent != path.parent for home in homes[name])
    ]


# ---- cycles --------------------------------------------------------------------------------------


def between_folders(edges: Iterable[Edge]) -> list[Edge]:
    """The edges that leave a folder, as edges of folders; each keeps its file in `source`."""
    return [e for e in edges if e.source.parent != e.target.parent]


def cycles(pairs: Iterable[tuple[Path, Path]]) -> list[list[Path]]:
    """Sets of nodes that reach one another, each sorted (Tarjan's components of two or more)."""
    after: dict[Path, list[Path]] = {}
    for source, target in pairs:
        after.setdefault(source, []).append(target)
        after.setdefault(target, [])
    number: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found: list[list[Path]] = []

    def visit(node: Path) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in after[node]:
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in after:
        if node not in number:
            visit(node)
    return sorted(found)


def on_cycles(edges: Iterable[Edge], *, folders: bool) -> list[Edge]:
    """The edges that close a cycle of files or of folders: what a failing test names."""
    edges = between_folders(edges) if folders else list(edges)

    def node(path: Path) -> Path:
        return path.parent if folders else path

    part = {
        member: number
        for number, members in enumerate(cycles((node(e.source), node(e.target)) for e in edges))
        for member in members
    }
    return [e for e in edges if part.get(node(e.source), -1) == part.get(node(e.target), -2)]
