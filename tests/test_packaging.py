"""What a user installs: every folder is listed, every file is in the wheel, every name imports."""

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.checkout import PACKAGES, ROOT, tracked, tracked_under

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no tomllib")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_folder_is_listed() -> None:
    """An unlisted folder works from a checkout and vanishes from the wheel."""
    found = {path.parent for path in tracked_under(*PACKAGES, suffix=".py")}
    names = {"hotcold." + ".".join(folder.parts) for folder in found}
    assert names == set(pyproject()["tool"]["setuptools"]["packages"])


def test_every_package_is_typed() -> None:
    assert {f"{name}/py.typed" for name in PACKAGES} <= {str(path) for path in tracked()}


def test_entry_points_exist() -> None:
    project = pyproject()["project"]
    points = dict(project["scripts"])
    for group, entries in project["entry-points"].items():
        points |= {f"{group}:{name}": target for name, target in entries.items()}
    for name, target in points.items():
        module, _, attribute = target.partition(":")
        found = getattr(importlib.import_module(module), attribute, None)
        assert callable(found), f"{name} names {target}, which is not there"


def test_constraints_lie_in_the_ranges_of_pyproject() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    ranges = {
        requirement.name: requirement.specifier
        for requirement in map(requirements.Requirement, pyproject()["project"]["dependencies"])
    }
    lines = (ROOT / ".constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    for pin in pins:
        name, _, version = pin.partition("==")
        assert version in ranges[name], f"{pin} is outside {ranges[name]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files alone."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    for path in tracked():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(folder), str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_one_wheel_serves_every_python(wheel: Path) -> None:
    assert re.fullmatch(r"hotcold-[\d.]+-cp310-abi3-\w+\.whl", wheel.name), wheel.name


@pytest.mark.slow
def test_the_wheel_holds_the_tracked_files_and_the_kernels(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hotcold/")}
    expected = {f"hotcold/{path.as_posix()}" for path in tracked_under(*PACKAGES)}
    built = {"hotcold/native/_kernels.abi3.so", "hotcold/native/abi/generated.py"}
    assert held == expected | built


@pytest.mark.slow
def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"hotcold-.*\.dist-info/licenses/LICENSE", name) for name in names)


@pytest.mark.slow
def test_the_wheel_runs_from_its_own_files(wheel: Path, tmp_path: Path) -> None:
    """Unpacked on its own and first on the path, it answers with its own kernels."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import hotcold.native._kernels as k, hotcold.actors.cli.main as m; "
        "import hotcold.native.bindings._ffi; print(k.__file__); "
        "raise SystemExit(m.main(['--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))
    assert "generate" in done.stdout
