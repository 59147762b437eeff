"""`hotcold doctor`: the table, the mends, the JSON line, the exit code."""

import json

import pytest
from support.command import Run

from hotcold.runtime.doctor import doctor
from hotcold.runtime.doctor.probes import Check

CHECKS = [Check("cores", "ok", "2 of 2"), Check("swap", "warn", "1 GiB\nin use", "swapoff -a")]


def test_this_machine_is_usable(run: Run) -> None:
    ended = run("doctor")
    assert ended.code == 0, ended.out
    assert {"CPU kernels", "memory", "GPU", "cache"} <= {
        line.split("  ")[0] for line in ended.out.splitlines()
    }


def test_only_a_failure_ends_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: CHECKS)
    ended = run("doctor")
    assert ended.code == 0
    assert [line.split() for line in ended.out.splitlines()] == [
        ["what", "state", "found"],
        ["cores", "ok", "2", "of", "2"],
        ["swap", "warn", "1", "GiB", "in", "use"],
        [],
        ["what", "what", "to", "do"],
        ["swap", "swapoff", "-a"],
    ]
    broken = [*CHECKS, Check("Ray", "fail", "not installed", "pip install ray")]
    monkeypatch.setattr(doctor, "examine", lambda: broken)
    ended = run("doctor", "--json")
    assert ended.code == 1
    result = json.loads(ended.out.splitlines()[-1])
    assert result["usable"] is False
    assert result["checks"][2] == {
        "name": "Ray",
        "state": "fail",
        "found": "not installed",
        "mend": "pip install ray",
    }


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_TMPDIR"])
def test_what_ray_would_stumble_over(
    run: Run, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    value = {"RAY_ADDRESS": "127.0.0.1:9", "RAY_TMPDIR": "/tmp/" + "x" * 90}[variable]
    monkeypatch.setenv(variable, value)
    ended = run("doctor")
    assert ended.code == 1
    failed = ended.out[ended.out.index("  fail") :]
    assert value in failed[:250]
    assert f"unset {variable}" in ended.out or f"export {variable}" in ended.out
