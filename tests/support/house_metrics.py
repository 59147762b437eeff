"""Counts of the house, to set one checkout beside another.

Run as `python tests/support/house_metrics.py [ROOT]`; without ROOT it is this checkout. A package
that an older checkout lays out otherwise is counted all the same.
"""

import ast
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file from anywhere
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import abi_mirrors, house

LINES = house.C_SUFFIXES | {".py", ".pyi"}
GENERATED = Path("native/abi/generated.py")  # by the build, where there is one


def product_files(root: Path, package: str) -> list[Path]:
    return [
        path
        for path in (root / package).rglob("*")
        if path.suffix in LINES and path.relative_to(root) != GENERATED
    ]


def product_lines(root: Path) -> dict[str, int]:
    """Lines of the sources of each package."""
    return {
        package: sum(len(path.read_text().splitlines()) for path in product_files(root, package))
        for package in house.ORDER
    }


def code_lines(path: Path) -> int:
    """Lines without comments, docstrings and blank ones."""
    text = path.read_text()
    if path.suffix in house.C_SUFFIXES:
        return sum(bool(line.strip()) for line in house.COMMENT.sub("", text).splitlines())
    prose = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), start=1)
    return sum(n not in prose and line.strip()[:1] not in ("", "#") for n, line in lines)


def metrics(root: Path) -> dict[str, int | str]:
    edges = house.imports(root)
    lines = product_lines(root)
    python = house.cycles((e.source, e.target) for e in edges)
    packages = house.cycles(
        (e.source.parent, e.target.parent) for e in house.between_folders(edges)
    )
    includes = house.includes(root)
    wrong = house.against_the_arrows(edges)
    parts = ", ".join(f"{package} {count}" for package, count in lines.items())
    return {
        "product lines": f"{sum(lines.values())} ({parts})",
        "of them code": sum(
            code_lines(path) for package in house.ORDER for path in product_files(root, package)
        ),
        "cycles of modules": f"{len(python)}, of {sum(map(len, python))} modules",
        "cycles of packages": f"{len(packages)}, of {sum(map(len, packages))} packages",
        "cycles of C files and headers": len(house.cycles((e.source, e.target) for e in includes)),
        "statements against the arrows": len({(e.source, e.line) for e in wrong}),
        "names imported against the arrows": len(wrong),
        "codes and sizes spelled by hand": len(abi_mirrors.places(root)),
        "files in runtime's root": len(list((root / "runtime").glob("*.py"))),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    for name, figure in metrics(root).items():
        print(f"{name + ':':<34}{figure}")


if __name__ == "__main__":
    main()
