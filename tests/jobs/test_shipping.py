"""What is sent to a cluster: the package as a wheel holds it, the folder as git sees it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hotcold.actors.jobs import shipping
from hotcold.native.errors import CheckpointError, ConfigError


def zipped(folder: Path, *excluded: str) -> list[str]:
    target = folder.parent / "sent.zip"
    names = shipping.zip_folder(folder, target, excluded)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert set(names) <= set(archive.namelist())
    return names


def test_the_running_package_runs_from_where_it_is_sent(tmp_path: Path) -> None:
    folders = shipping.package_folders(tmp_path)
    assert folders[0].name == "hotcold"
    assert not list(tmp_path.rglob("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import hotcold.runtime as r; print(*r.__path__)"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "hotcold" / "runtime")


def test_a_wheel_is_unpacked_and_says_what_it_needs(tmp_path: Path) -> None:
    wheel = tmp_path / "hotcold-0.1.0-cp310-abi3-linux_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hotcold/native/_kernels.abi3.so", "")
        archive.writestr(
            "hotcold-0.1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: hotcold\nVersion: 0.1.0\nRequires-Dist: ray<3,>=2.50\n"
            "Requires-Dist: torch<3,>=2\nRequires-Dist: scipy; extra == 'solver'\n",
        )
    folders = shipping.package_folders(tmp_path / "a", wheel)
    assert [folder.name for folder in folders] == ["hotcold", "hotcold-0.1.0.dist-info"]
    assert shipping.requirements(folders) == ["torch<3,>=2"]
    with pytest.raises(ConfigError, match="--wheel"):
        shipping.requirements(folders[:1])


@pytest.mark.parametrize("name", ["numpy/__init__.py", "hotcold/../../evil"])
def test_other_wheels_are_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, "")
    with pytest.raises(CheckpointError, match="not a wheel of hotcold"):
        shipping.package_folders(tmp_path / "into", wheel)
    (tmp_path / "text.whl").write_text("no zip")
    with pytest.raises(CheckpointError, match="cannot be read as a wheel"):
        shipping.package_folders(tmp_path / "into", tmp_path / "text.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hotcold/runtime/a.py", "")
    with pytest.raises(ConfigError, match="no C kernels"):
        shipping.package_folders(tmp_path / "into2", wheel)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_the_folder_without_what_stays(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    write(folder, "mine.py", "data/a.txt", "data/b.bin", "out/plan.json", "x/__pycache__/m.pyc")
    assert zipped(folder, "out", "*.bin") == ["data/a.txt", "mine.py"]
    first = (tmp_path / "sent.zip").read_bytes()
    os.utime(folder / "mine.py", (0, 0))
    zipped(folder, "out", "*.bin")
    assert (tmp_path / "sent.zip").read_bytes() == first  # Ray has it already


def test_what_git_ignores_stays(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    write(folder, "mine.py", "weights.bin", "new.py")
    (folder / ".gitignore").write_text("*.bin\n")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["git", "add", "mine.py"], cwd=folder, check=True)
    assert zipped(folder) == [".gitignore", "mine.py", "new.py"]
    assert zipped(folder, "*.py", ".git*") == []


def test_folders_that_cannot_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no folder .*nowhere"):
        zipped(tmp_path / "nowhere")
    folder = tmp_path / "work"
    write(folder, "mine.py")
    (folder / "model.bin").write_bytes(np.random.default_rng(0).bytes(20_000))
    monkeypatch.setattr(shipping, "FOLDER_LIMIT", 10_000)
    with pytest.raises(ConfigError, match=r"model.bin: 19.5 KiB.*--exclude"):
        zipped(folder)
