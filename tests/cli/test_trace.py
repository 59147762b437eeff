"""`hotcold trace`: both files written, sums beside the counters, refusals before anything runs."""

import json
from pathlib import Path

import pytest
from support.command import Run, only_line
from support.fake_engine import FakeEngine


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine's spans are of the first 400 us of its clock."""
    monkeypatch.setattr("time.monotonic_ns", lambda: 150_000)


def test_writes_a_trace_and_a_picture(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run("trace", "here", "--max-tokens", "3", "--out", str(out), "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out.splitlines()[-1])
    assert result["passes"] == 3 and result["token_us"] == 99.0
    gpu = result["actors"]["gpu"]
    assert gpu["busy_s"] == pytest.approx(3 * 49e-6) and gpu["wait_s"] == pytest.approx(3 * 50e-6)
    assert gpu["counted_busy_s"] == 0.75 and gpu["counted_wait_s"] == 0.25
    trace = json.loads(Path(result["trace"]).read_text())
    names = {event["name"] for event in trace["traceEvents"]}
    assert {"attention 0", "cold 0", "merge 0", "wait", "pass 3", "process_name"} <= names
    assert trace["otherData"]["schedule"] == "selective"
    assert Path(result["picture"]).read_bytes().startswith(b"\x89PNG")
    assert ended.out.splitlines()[1].split()[:3] == ["gpu", "49.0", "50.0"]


def test_without_matplotlib_only_the_picture_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    ended = run("trace", "--max-tokens", "3", "--out", str(tmp_path), "--json")
    assert ended.code == 0
    assert "token.png is left out" in ended.err and "hotcold[pictures]" in ended.err
    assert json.loads(ended.out.splitlines()[-1])["picture"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--out", "/dev/null"], "is a file"),
        (["--out", "x", "--prompt", " "], "empty"),
        (["here", "--model", "there", "--out", "x"], "two models"),
        ([], "--out"),
    ],
)
def test_refused(run: Run, engines: list[FakeEngine], argv: list[str], expected: str) -> None:
    ended = run("trace", *argv)
    assert ended.code == 2
    assert expected in only_line(ended.err)
    assert engines == []
