"""A short chaos run as a user starts it: nothing hangs, leaks, or changes a token."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.ray
@pytest.mark.slow
def test_chaos_finds_nothing() -> None:
    command = [sys.executable, "-m", "hotcold.runtime.cli.main", "chaos", "--runs", "6"]
    done = subprocess.run(
        [*command, "--seed", "11", "--json"],
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["hangs"], result["leaks"], result["wrong_tokens"]) == (0, 0, 0)
    assert result["runs"] == 6
    assert result["faults"] >= 6
    assert result["recoveries"] >= 5
