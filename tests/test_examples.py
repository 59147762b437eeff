"""Every example runs; those that are programs, and not a plug-in to name, also print something."""

import re
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT, tracked_under
from support.programs import check_program

from hotcold.policies.suites.check import check_placement_policy, check_schedule_policy

# What runs until its time is up by itself, and reports at length.
SHORTER = {"06_train_relu_model": ("--steps", "8", "--report-tokens", "1024")}


def examples(actors: bool) -> list[object]:
    """Those that launch actors, or all others."""
    return [
        pytest.param(path.relative_to(ROOT), id=path.stem)
        for path in sorted((ROOT / "examples").glob("*.py"))
        if ("Engine.launch" in path.read_text()) == actors
    ]


def test_there_are_examples_and_they_are_numbered() -> None:
    found = tracked_under("examples", suffix=".py")
    names = [path.name for path in found if len(path.parts) == 2]  # a package below names its own
    assert names
    assert all(name[:2].isdigit() and name[2] == "_" for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("path", examples(actors=False))
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    check_example(path, tmp_path, "local")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("path", examples(actors=True))
def test_an_example_with_actors_runs(path: Path, tmp_path: Path, one_ray: str) -> None:
    check_example(path, tmp_path, one_ray)


def check_example(path: Path, tmp_path: Path, address: str) -> None:
    command = [sys.executable, str(ROOT / path), *SHORTER.get(path.stem, ())]
    printed = check_program(command, tmp_path, address)
    if "__main__" in (ROOT / path).read_text():
        assert printed.strip()


def test_the_example_package_conforms_and_registers_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = ROOT / "examples" / "policy_package"
    monkeypatch.syspath_prepend(str(folder / "src"))
    text = (folder / "pyproject.toml").read_text()
    targets = dict(re.findall(r'^([\w-]+) = "(warm_layers\.\w+:\w+)"', text, re.M))
    assert set(targets) == {"warm-layers", "late-sync"}
    check_placement_policy(targets["warm-layers"])
    check_schedule_policy(targets["late-sync"])
