"""The files of the checkout, for the tests that look at the project itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runtime", "actors", "native", "policies")


def tracked() -> list[Path]:
    """Every tracked file, relative to the root; the test is skipped outside a git checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be told")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    return sorted(Path(name) for name in listing.split("\0") if name and (ROOT / name).exists())


def tracked_under(*folders: str, suffix: str = "") -> list[Path]:
    """Tracked files of these top-level folders with this suffix, relative to the root."""
    return [
        path
        for path in tracked()
        if path.parts[0] in folders and len(path.parts) > 1 and path.name.endswith(suffix)
    ]
