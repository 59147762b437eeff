"""Documents say where things are: what they name must be there."""

import re
from pathlib import Path

import pytest
from support.checkout import PACKAGES, ROOT, tracked

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.])(?:{'|'.join((*PACKAGES, 'tests', 'examples'))})(?:/[\w.-]+)+")
FILE_NAME = re.compile(r"(?<![\w./*-])((?:[\w-]+/)*[\w-]+\.(?:py|cuh?))(?![\w(:])")
# Files that a user would write, the build makes, a run leaves, or another project has.
FOREIGN = {
    *("generated.py", "abi/generated.py"),
    *("mine.py", "file.py", "file.cu", "hotcold.py", "hotcold/__init__.py", "setup.py"),
    *("version.py", "solver.py", "convert-hf-to-powerinfer-gguf.py", "powerinfer-gguf.py"),
    *("convert_llama_weights_to_hf.py", "zero_to_fp32.py"),
}


def documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def anchors(text: str) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path) -> list[str]:
    """Links to files of the project that lead nowhere."""
    text = (ROOT / document).read_text(encoding="utf-8")
    wrong = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = ROOT / document.parent / name if name else ROOT / document
        if not target.exists():
            wrong.append(f"{document}: {link}")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{document}: no heading #{anchor} in {name or document}")
    return wrong


def test_every_relative_link_of_a_document_leads_somewhere() -> None:
    found = documents()
    assert {Path("README.md"), Path("examples/HOUSE.md")} <= set(found)
    assert [wrong for document in found for wrong in broken(document)] == []


def test_every_path_that_a_document_names_exists() -> None:
    wrong = [
        f"{document}: {path}"
        for document in documents()
        for path in PATH.findall((ROOT / document).read_text(encoding="utf-8"))
        if not (ROOT / path.rstrip(".")).exists()
    ]
    assert wrong == []


def stale(text: str, names: set[str]) -> list[str]:
    """Names of source files in a text that no file of the project has.

    "cuda/rates.cu" stands for every file rates.cu somewhere below a folder cuda.
    """
    known = {tuple(name.split("/")) for name in names}
    return [
        name
        for name in FILE_NAME.findall(text)
        if name not in FOREIGN and not any(leads_to(name.split("/"), parts) for parts in known)
    ]


def leads_to(short: list[str], parts: tuple[str, ...]) -> bool:
    """Whether a path ends with the last part and holds the others in their order."""
    rest = iter(parts[:-1])
    return parts[-1] == short[-1] and all(part in rest for part in short[:-1])


def test_no_source_names_a_file_that_is_gone() -> None:
    """Docstrings, comments and messages of the packages and the examples."""
    files = tracked()
    names = {path.as_posix() for path in files}
    wrong = []
    for path in files:
        if path.parts[0] not in {*PACKAGES, "examples"} or path.suffix not in {".py", ".md"}:
            continue
        found = stale((ROOT / path).read_text(encoding="utf-8"), names)
        wrong += [f"{path}: {name}" for name in found]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see runtime/trio.py", ["runtime/trio.py"]),
        ("(plan.py) and cost.py", []),
        ("read plan/plan.py, apart.py.", ["apart.py"]),
        ("graph.cu, ask.cu", ["ask.cu"]),
        ("mine.py:Mine", []),
        ("cuda/graph.cu, cpu/graph.cu", ["cpu/graph.cu"]),
    ],
)
def test_the_check_itself_finds(text: str, found: list[str]) -> None:
    names = {"runtime/plan/plan.py", "runtime/plan/cost.py", "native/cuda/executor/graph.cu"}
    assert stale(text, names) == found


ENTRY = re.compile(r"^\*\*`.+?(?=^\*\*`|^## |\Z)", re.M | re.S)
PROOF = re.compile(r"^<!-- test: (tests/[\w/]+\.py)::(test_\w+) -->$", re.M)


def without_proof(text: str) -> list[str]:
    """The first lines of the entries that no test of the project provokes."""
    return [
        entry.splitlines()[0]
        for entry in ENTRY.findall(text)
        if not any(
            (ROOT / file).exists() and f"def {test}(" in (ROOT / file).read_text("utf-8")
            for file, test in PROOF.findall(entry)
        )
    ]


def test_each_entry_of_the_troubleshooting_page_has_its_test() -> None:
    text = (ROOT / "examples/TROUBLESHOOTING.md").read_text(encoding="utf-8")
    assert len(ENTRY.findall(text)) == text.count("\n**`") > 0
    assert without_proof(text) == []
    assert without_proof(text.replace("::test_", "::test_no_such_")) != []
