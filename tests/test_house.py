"""The house rules that a machine can check."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.checkout import PACKAGES, ROOT, tracked, tracked_under

MAX_LINES = 500
ASK_LINES = 300  # over this many a file has a reason here: it does one job, which takes so much
LONG = {
    "actors/cli/bench/bench.py": "one command group: a short function for each measurement",
    "actors/engine/client.py": "one class: what drivers ask of actors, whoever launched them",
    "actors/engine/engine.py": "one class: all that a user does with an engine",
    "actors/group/actor_group.py": "one object: actors and epochs until the last freed byte",
    "actors/group/executor_actors.py": "three actor classes that share a base",
    "native/abi/hotcold.h": "the ABI in one header, from which the Python module is generated",
    "native/cpu/avx512.c": "every primitive of one instruction set",
    "native/cuda/executor/graph.cu": "one job: the kernels of each step of a program",
    "native/cuda/kernels/attention.cuh": "one kernel's parts, for every dtype of a cache",
    "native/cuda/kernels/ffn.cu": "one operator: its two phases share tiles and index",
    "native/cuda/prompt/gemm.cu": "one operator: a product in every dtype and epilogue",
    "native/cuda/prompt/prompt_layer.cu": "one job: the operators of a dense pass",
    "native/layout/gpu_layout.c": "one list: every tensor in the memory of a GPU",
    "native/loop/device.c": "the whole C face of a plug-in: opened, called and accounted for",
    "native/ops/ffn.c": "one operator: both feed-forward forms share list and threads",
    "policies/solvers/curves.py": "one method: curves of layers, and memory shared by them",
    "runtime/engine/gpu.py": "one decision: how a deployment uses its GPU",
    "runtime/engine/moving.py": "one transaction: what hinders it, its versions, its way back",
    "runtime/exchange/segment.py": "one type: a segment made, attached, read and closed",
    "runtime/hardware/machine_file.py": "one file format: fields, checks and messages",
    "runtime/options/config.py": "one table: every option of an engine",
    "runtime/plan/plan.py": "one type and its file: what crosses from offline to online",
    "runtime/plan/problem.py": "two types that every placement policy reads",
    "runtime/plan/schedule.py": "one type, its checks and its usual forms",
    "runtime/predictors/predictor.py": "one interface: layers, what is asked of them, checks",
    "runtime/predictors/predictor_file.py": "one file format: written, read and checked",
    "tests/actors/test_command.py": "one command as a process, from every side",
    "tests/actors/test_supervisor.py": "every loss and its recovery, on shared engines",
    "tests/cli/test_compare.py": "one command, on one pair of inputs",
    "tests/runtime/engine/test_moving.py": "one transaction, of every kind and failing everywhere",
    "tests/runtime/plugins/test_child.py": "every way in which a policy's process can go wrong",
    "tests/runtime/model/test_bundle.py": "one file format, damaged in every way",
    "tests/runtime/model/test_model_folders.py": "one table of folders as people have them",
    "tests/runtime/offline/test_training.py": "one small model, trained once in every way",
    "tests/runtime/text/test_tokenizer.py": "one tokenizer, every kind of text and stream",
    "tests/runtime/model/test_opt.py": "one architecture, from its files to its tokens",
    "tests/runtime/offline/test_profile_job.py": "one job, interrupted in every way",
    "tests/test_recipe.py": "one recipe, trained once for all of its tests",
}
TOP_LEVEL = {
    *(PACKAGES + ("tests", "examples", ".ci")),
    ".clang-format",
    ".constraints.txt",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
}
DATA = Path("runtime/embedded")
TEXT = {".py", ".pyi", ".c", ".h", ".cu", ".cuh", ".md", ".toml", ".txt", ""}
# Spelled in pieces, so that this file does not break its own rule.
MACHINE_PATHS = re.compile(
    "|".join(["/" + "work/", r"(?<![\w/])" + "shared" + r"/\w", "/" + "root/"])
)
UNSAFE_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
UNSAFE_CALLS = {"eval", "exec"}
# The one place that runs a file: the policy that the user named, on the user's own machine.
RUNS_A_NAMED_FILE = ("runtime/plugins/registry.py", "exec")
UNSAFE_ATTRIBUTES = {("torch", "load"), ("os", "system")}


def sources() -> list[Path]:
    """Tracked text files that people write; model data and the licence are not."""
    return [
        path
        for path in tracked()
        if path.suffix in TEXT and path.name != "LICENSE" and DATA not in path.parents
    ]


def parsed(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in tracked_under(*folders, suffix=".py"):
        yield path, ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def lengths() -> dict[str, int]:
    return {
        path.as_posix(): len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in sources()
    }


def wrong_lengths(lines: dict[str, int], reasons: dict[str, str]) -> list[str]:
    """Files over the limit, long ones without a reason, reasons that nothing needs."""
    return [
        *(
            f"{path}: {n} lines, never over {MAX_LINES}"
            for path, n in lines.items()
            if n > MAX_LINES
        ),
        *(
            f"{path}: {n} lines; two jobs, or a reason in LONG?"
            for path, n in lines.items()
            if n > ASK_LINES and not reasons.get(path)
        ),
        *(
            f"LONG[{path!r}]: not over {ASK_LINES} lines, remove it"
            for path in reasons
            if lines.get(path, 0) <= ASK_LINES
        ),
    ]


def test_a_long_file_has_a_reason() -> None:
    wrong = wrong_lengths(lengths(), LONG)
    assert not wrong, "\n".join(wrong)


def test_the_check_of_lengths_finds() -> None:
    lines = {"a.py": 501, "b.py": 301, "c.py": 300, "d.py": 500}
    assert wrong_lengths(lines, {"a.py": "x", "c.py": "x", "d.py": "x", "e.py": "x"}) == [
        "a.py: 501 lines, never over 500",
        "b.py: 301 lines; two jobs, or a reason in LONG?",
        "LONG['c.py']: not over 300 lines, remove it",
        "LONG['e.py']: not over 300 lines, remove it",
    ]


def test_the_readme_fits_its_limit() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_top_level_is_fixed() -> None:
    found = {path.parts[0] for path in tracked()}
    assert found - TOP_LEVEL == set(), "new names at the top level"
    assert TOP_LEVEL - found == set(), "names the project needs are missing"


def test_sources_are_ascii() -> None:
    wrong = []
    for path in sources():
        for number, line in enumerate((ROOT / path).read_bytes().splitlines(), start=1):
            if not line.isascii():
                wrong.append(f"{path}:{number}")
    assert not wrong, f"not ASCII (escape it): {wrong}"


def test_sources_name_no_path_of_one_machine() -> None:
    wrong = []
    for path in sources():
        for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1):
            if MACHINE_PATHS.search(line):
                wrong.append(f"{path}:{number}: {line.strip()}")
    assert not wrong, wrong


def test_every_module_says_what_it_is_for() -> None:
    wrong = [
        str(path)
        for path, tree in parsed(*PACKAGES, "examples")
        if tree.body and not (ast.get_docstring(tree) or "").strip()
    ]
    assert not wrong, f"no module docstring: {wrong}"


def test_nothing_executes_data() -> None:
    """No unpickling, no eval, no torch.load: a model file is data and stays data."""
    wrong = []
    for path, tree in parsed(*PACKAGES):
        for node in ast.walk(tree):
            name = unsafe(node)
            if name is not None and (path.as_posix(), name) != RUNS_A_NAMED_FILE:
                wrong.append(f"{path}:{node.lineno}: {name}")  # type: ignore[attr-defined]
    assert not wrong, wrong


def unsafe(node: ast.AST) -> str | None:
    """What is wrong with a node, or None."""
    if isinstance(node, ast.Import):
        return next((a.name for a in node.names if a.name.split(".")[0] in UNSAFE_IMPORTS), None)
    if isinstance(node, ast.ImportFrom):
        top = (node.module or "").split(".")[0]
        return top if top in UNSAFE_IMPORTS and node.level == 0 else None
    if isinstance(node, ast.Call):
        called = node.func
        if isinstance(called, ast.Name) and called.id in UNSAFE_CALLS:
            return called.id
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            pair = (called.value.id, called.attr)
            if pair == ("torch", "load") and "weights_only=True" in map(ast.unparse, node.keywords):
                return None  # tensors only: it unpickles no other class and calls nothing
            return ".".join(pair) if pair in UNSAFE_ATTRIBUTES else None
    if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "shell"}:
        return f"{node.arg}=True" if getattr(node.value, "value", None) is True else None
    return None


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from cloudpickle import loads", "eval('1')", "torch.load('x')",
     "torch.load('x', weights_only=False)", "np.load(f, allow_pickle=True)",
     "subprocess.run(c, shell=True)"],
)  # fmt: skip
def test_the_check_itself_finds(code: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(code)))
