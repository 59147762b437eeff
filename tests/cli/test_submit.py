"""`hotcold submit` before anything is sent, and the job's side of it without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import Run, only_line

from hotcold.actors.jobs.jobstream import BEGIN, ERROR, EXIT, FILE, Splitter


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "frobnicate"), "'frobnicate' is no command to submit"),
        (("--", "submit", "--", "doctor"), "'submit' is no command to submit"),
        (("--", "python"), "'python' is no command to submit"),
        (("--fetch", "../out", "--", "doctor"), "must name a file or folder below"),
        (("--fetch", "/out", "--", "doctor"), "must name a file or folder below"),
        (("--env", "A", "--", "doctor"), "--env 'A' is not NAME=VALUE"),
        ((), "Missing argument"),
    ],
)
def test_refused(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ended = run("submit", *arguments)
    assert ended.code == 2
    assert message in only_line(ended.err)


def python(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("environment", [{}, {"RAY_ADDRESS": "auto"}], ids=str)
def test_nobody_at_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    pytest.importorskip("aiohttp", reason="needs Ray's job client: pip install 'hotcold[jobs]'")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)  # what Ray's client would prefer to the address given
    command = ("hotcold.actors.cli.main", "submit", "--address", "http://127.0.0.1:9")
    done = python(tmp_path, *command, "--", "doctor")
    assert done.returncode == 1
    assert "no Ray dashboard answers at http://127.0.0.1:9" in only_line(done.stderr)


def job(folder: Path, *arguments: str) -> tuple[int, list[tuple[str, str]]]:
    done = python(folder, "hotcold.actors.cli.commands.job", *arguments)
    assert done.stderr == ""
    return done.returncode, list(Splitter().feed(done.stdout))


def test_a_job_tells_its_output_its_messages_and_its_end(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import sys, pathlib\nprint('out', sys.argv[1])\nprint('message', file=sys.stderr)\n"
        "pathlib.Path('made.txt').write_text('made')\nsys.exit(7)\n"
    )
    fetch = ("--fetch", "made.txt", "--fetch", "missing")
    code, said = job(tmp_path, *fetch, "--", "python", "program.py", "--option")
    assert code == 7
    assert said[0] == (BEGIN, "") and said[-1] == (EXIT, "7\n")
    assert ("", "out --option\n") in said
    messages = "".join(text for kind, text in said if kind == ERROR)
    assert messages.startswith("message\n")
    assert sum(kind == FILE for kind, _ in said) == 1
    assert "--fetch missing: the command wrote no such file" in messages


def test_a_job_on_another_kind_of_machine(tmp_path: Path) -> None:
    code, said = job(tmp_path, "--machine", "vax", "--", "doctor")
    assert code == 1
    assert "the kernels sent are for vax" in said[1][1] and "--wheel" in said[1][1]


def test_a_job_that_dies_of_a_signal(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os; os.kill(os.getpid(), 9)")
    code, said = job(tmp_path, "--", "python", "program.py")
    assert code == 137 and said[-1] == (EXIT, "137\n")
