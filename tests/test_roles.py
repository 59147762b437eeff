"""Roles and transports are classes: nobody asks for one by its name but the table that chooses."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import PACKAGES, ROOT, tracked_under

NAMES = {"gpu", "cpu", "predictor", "native", "ray"}
# What else is called so: kinds of modules and plug-ins, devices of torch, who evaluates gates.
OTHER_NOUNS = {"kind", "type", "by"}
EXCEPTIONS = {
    ("runtime/offline/evaluation/sweep.py", "k.rpartition('.')[0] != 'predictor'"),  # a setting's
    ("runtime/offline/plant/making.py", "name not in ('cpu', 'cuda')"),  # a device of torch
    ("runtime/options/config.py", "self.transport == 'ray'"),  # the check of an option's value
}


def names_in(node: ast.expr) -> bool:
    """Whether an expression spells a role or a transport: a word, or a list of words."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return any(isinstance(part, ast.Constant) and part.value in NAMES for part in parts)


def spells_a_name(node: ast.Compare) -> bool:
    """Whether a comparison asks for a name; a name looked up in a table does not."""
    sides = [node.left, *node.comparators]
    if isinstance(node.ops[0], ast.In | ast.NotIn):
        sides = node.comparators
    return any(map(names_in, sides)) and not OTHER_NOUNS & set(map(noun, [node.left, *sides]))


def noun(node: ast.expr) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def comparisons(tree: ast.Module) -> Iterator[ast.AST]:
    """Comparisons with a name, and cases of a match."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            if spells_a_name(node):
                yield node
        elif isinstance(node, ast.MatchValue) and names_in(node.value):
            yield node


def test_nobody_tests_the_name_of_a_role_or_a_transport() -> None:
    found = set()
    for path in tracked_under(*PACKAGES, suffix=".py"):
        for node in comparisons(ast.parse((ROOT / path).read_text())):
            text = ast.unparse(node)
            if (path.as_posix(), text) not in EXCEPTIONS:
                found.add(f"{path}:{node.lineno}: {text}")  # type: ignore[attr-defined]
    assert not found, f"ask its class (executors, transports) instead: {sorted(found)}"


def test_the_exceptions_are_there() -> None:
    for path, text in EXCEPTIONS:
        nodes = comparisons(ast.parse((ROOT / Path(path)).read_text()))
        assert text in map(ast.unparse, nodes), f"{path} has it no more: leave it out here"


@pytest.mark.parametrize(
    "code",
    ["actor == 'gpu'", "'cpu' != self.actor", "a if t in ('native', 'ray') else b",
     "match actor:\n case 'predictor':\n  pass"],
)  # fmt: skip
def test_the_check_itself_finds(code: str) -> None:
    assert list(comparisons(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["module.kind == 'predictor'", "actor == other", "x == 'gpus'", "'gpu' in table"]
)
def test_the_check_lets_other_words_be(code: str) -> None:
    assert not list(comparisons(ast.parse(code)))
