"""Every example runs; those that are programs, and not a plug-in to name, also print something."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT, tracked_under

TIMEOUT_S = 180


def examples() -> list[object]:
    found = sorted(path.relative_to(ROOT) for path in (ROOT / "examples").glob("*.py"))
    return [pytest.param(path, id=path.stem) for path in found]


def test_there_are_examples_and_they_are_numbered() -> None:
    names = [path.name for path in tracked_under("examples", suffix=".py")]
    assert names
    assert all(name[:2].isdigit() and name[2] == "_" for name in names)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("path", examples())
def test_an_example_runs(path: Path, tmp_path: Path, no_leaks: None) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / path)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if "__main__" in (ROOT / path).read_text():
        assert done.stdout.strip()
