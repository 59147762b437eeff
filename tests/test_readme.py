"""The README is run, not trusted: its blocks, its links, its commands; and the page of settings.

A code block says on the line above what it is: `<!-- test: run -->` is run (with `ray` it starts
Ray), `<!-- test: file NAME -->` is written for the blocks after it, `<!-- test: show -->` is only
looked at. Blocks of plain text need no such line.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.checkout import PACKAGES, ROOT, tracked_under
from support.programs import check_program

README = ROOT / "README.md"
SETTINGS = ROOT / "examples" / "SETTINGS.md"
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
BOOK = "The old ship lay in the harbour. The children ran down to the sea to look at it. " * 200


@dataclass(frozen=True)
class Block:
    number: int
    line: int
    language: str
    marks: tuple[str, ...]
    code: str


def blocks() -> list[Block]:
    text = README.read_text(encoding="utf-8")
    return [
        Block(
            number,
            text[: found.start("code")].count("\n") + 1,
            found["language"],
            tuple((found["mark"] or "").split()),
            found["code"],
        )
        for number, found in enumerate(BLOCK.finditer(text))
    ]


def runnable(ray: bool) -> list[object]:
    return [
        pytest.param(block, id=f"line-{block.line}")
        for block in blocks()
        if block.marks[:1] == ("run",) and ("ray" in block.marks) == ray
    ]


def test_every_block_says_what_it_is() -> None:
    assert len(blocks()) * 2 == len(re.findall(r"^```", README.read_text(), re.M))
    for block in blocks():
        if block.language == "text":
            continue
        assert block.marks[:1] in {("run",), ("file",), ("show",)}, f"README line {block.line}"
        assert block.language in {"bash", "python"}, f"README line {block.line}"


def test_some_block_of_each_kind_is_run() -> None:
    run = {block.language for block in blocks() if block.marks[:1] == ("run",)}
    assert run == {"bash", "python"}


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the README's files, and a `hotcold` on the path that is this checkout's."""
    for block in blocks():
        if block.marks[:1] == ("file",):
            (tmp_path / block.marks[1]).write_text(block.code)
    (tmp_path / "book.txt").write_text(BOOK)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "hotcold"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hotcold.actors.cli.main "$@"\n')
    script.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("block", runnable(ray=False))
def test_a_block_runs(block: Block, workplace: Path) -> None:
    check_block(block, workplace, "local")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("block", runnable(ray=True))
def test_a_block_with_actors_runs(block: Block, workplace: Path, one_ray: str) -> None:
    check_block(block, workplace, one_ray)


def check_block(block: Block, workplace: Path, address: str) -> None:
    if block.language == "python":
        (workplace / "block.py").write_text(block.code)
        command = [sys.executable, "block.py"]
    else:
        command = ["bash", "-euo", "pipefail", "-c", block.code]
    path = f"{workplace / 'bin'}:{os.environ['PATH']}"
    assert check_program(command, workplace, address, PATH=path).strip(), "it printed nothing"


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 20
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing, missing


def test_the_settings_table_is_complete() -> None:
    """Every HOTCOLD_ variable that a source reads is in the table, and none that nobody reads."""
    read: set[str] = set()
    for path in tracked_under(*PACKAGES):
        if path.suffix in {".py", ".c"}:
            source = (ROOT / path).read_text(encoding="utf-8")
            read |= set(re.findall(r'"(HOTCOLD_[A-Z_]+)"', source))
    documented = set(re.findall(r"^\| `(HOTCOLD_[A-Z_]+)`", SETTINGS.read_text(), re.M))
    assert documented == read


def test_the_commands_it_names_exist() -> None:
    from hotcold.actors.cli.main import COMMANDS

    named = set(re.findall(r"(?:^|`|-- )hotcold ([a-z-]+)", README.read_text(), re.M))
    assert named <= set(COMMANDS), named - set(COMMANDS)
