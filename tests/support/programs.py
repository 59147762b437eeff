"""Programs as a user starts them: in a folder, with a Ray to join or one of their own."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

TIMEOUT_S = 180


def check_program(command: Sequence[str], folder: Path, address: str, **env: str) -> str:
    """Run to the end without input; what it printed. Fails with its output unless it exits with 0.

    Args:
        command: words of it.
        folder: where it runs.
        address: RAY_ADDRESS, "local" for a Ray of its own.
        env: beside this process's environment.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": address, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
