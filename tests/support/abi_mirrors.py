"""Places in product code that spell a number of the ABI by hand: step, flag, dtype and actor codes,
tuples and tables of their words, sizes of structs. The headers of native/abi say each once.

Stands alone: it reads sources as text, so it can count an older checkout too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("runtime", "actors", "native", "policies")
ACTORS = {"gpu", "cpu", "predictor"}
OPS = {"embed", "attention", "predict", "hot", "cold", "merge", "head"}
DTYPES = {"float32", "float16", "bfloat16", "int8"}
POISON = {"CLOSED", "DIED", "FAILED", "STUCK"}
STEP_FLAGS = {"SELECTIVE", "ALL", "HOT", "COLD", "RESIDUAL", "AHEAD"}
CODED = {"op", "dtype", "actor", "flags", "kind", "form", "epilogue", "phase", "when"}
# Constants of the ABI under the names that Python has given them.
SIZES = re.compile(r"(MAX_(BATCH|WATCHED)|DRIVER|(FLAG|SPAN|HEADER)_BYTES|LINE|ABI_VERSION)$")
STRUCTS = (
    {"begin_ns", "ready_ns", "end_ns"},
    {"op", "layer", "wait", "signal"},
    {"id", "logprob", "time_ns"},
)
# Words with numbers that are not the ABI's: the largest value of a dtype, the mask of its exponent,
# how exact a product is.
NOT_CODES = {
    ("dtypes.py", "LARGEST"),
    ("dtypes.py", "EXPONENT"),
    ("cuda_variant_passes.py", "ALLOWED"),
}
IN_C = re.compile(
    r"\b(?:dtype|\w*\.op|step->op|form|poison_code)\s*[!=]=\s*\d"
    r"|phase_ns\[\d\]|PHASE_OF\[\]\s*=\s*\{|HC_I8\s*=\s*\d|<<\s*8\s*\|\s*\(uint8_t\)actor"
    r"|enum (?:When|DenseEpilogue)\b|\* 4 \+ 63\) / 64"
)


def places(root: Path) -> list[str]:
    """Path, line and text of each, relative to root; empty where the headers are the one source."""
    found = []
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if "__pycache__" in name or name == "native/abi/generated.py":
                continue
            if path.suffix == ".py":
                text = path.read_text(encoding="utf-8")
                lines = text.splitlines()
                numbers = {node.lineno for node in _in_python(ast.parse(text), path.name)}
                found += [f"{name}:{at}: {lines[at - 1].strip()}" for at in sorted(numbers)]
            elif path.suffix in {".c", ".cu", ".cuh", ".h"} and "native/abi" not in name:
                for at, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    if IN_C.search(line):
                        found.append(f"{name}:{at}: {line.strip()}")
    return found


def _in_python(tree: ast.Module, name: str) -> Iterator[ast.expr | ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets = [one for target in node.targets for one in _names(target)]
            if not any((name, target) in NOT_CODES for target in targets):
                yield from _assigned(node, targets, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = _names(node.target)
            if not any((name, target) in NOT_CODES for target in targets):
                yield from _assigned(node, targets, node.value)
        elif isinstance(node, ast.ClassDef):
            members = {target for body in node.body for target in _assigned_names(body)}
            if len(members & POISON) > 1:
                yield node
        elif isinstance(node, ast.Compare) and _key(node.left) in CODED:
            if any(_whole(other) for other in node.comparators):
                yield node
        elif isinstance(node, (ast.BinOp, ast.Call)) and _strides_by_hand(node):
            yield node
        elif isinstance(node, ast.List) and _fields(node):
            yield node


def _assigned(node: ast.stmt, names: list[str], value: ast.expr) -> Iterator[ast.stmt]:
    """An assignment of codes, words or sizes."""
    whole = _whole(value) or isinstance(value, ast.Tuple) and all(map(_whole, value.elts))
    words = [word.value for word in getattr(value, "elts", []) if isinstance(word, ast.Constant)]
    if whole and (len(STEP_FLAGS & set(names)) > 1 or any(SIZES.match(one) for one in names)):
        yield node
    elif isinstance(value, (ast.Tuple, ast.List)) and len(words) == len(value.elts):
        if any(set(words) == all_ for all_ in (ACTORS, OPS)) or len(OPS & set(words)) > 4:
            yield node
        elif len(DTYPES & set(words)) > 2:
            yield node
    elif isinstance(value, ast.Dict):
        keys = {key.value for key in value.keys if isinstance(key, ast.Constant)}
        coded = all(map(_whole, value.values)) and bool(value.values)
        if coded and any(len(keys & of) > 1 for of in (ACTORS, OPS, DTYPES)):
            yield node


def _names(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Tuple):
        return [name for one in target.elts for name in _names(one)]
    return [target.id] if isinstance(target, ast.Name) else []


def _assigned_names(node: ast.stmt) -> list[str]:
    if not isinstance(node, ast.Assign) or not _whole(node.value):
        return []
    return [name for target in node.targets for name in _names(target)]


def _key(node: ast.expr) -> str:
    """The last word of step["op"] or step.op."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return str(node.slice.value)
    return node.attr if isinstance(node, ast.Attribute) else ""


def _whole(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int


def _fields(node: ast.List) -> bool:
    """Whether a list of (name, type) lays out a struct of the exchange."""
    names = {
        one.elts[0].value
        for one in node.elts
        if isinstance(one, ast.Tuple) and one.elts and isinstance(one.elts[0], ast.Constant)
    }
    return any(fields <= names for fields in STRUCTS)


def _strides_by_hand(node: ast.BinOp | ast.Call) -> bool:
    """Flags or entries of a list by a size in figures: n_flags * 64."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    sides = (node.left, node.right)
    named = any(re.search(r"flags?$", _key(side) or getattr(side, "id", "")) for side in sides)
    return named and any(_whole(side) for side in sides)
