"""Standard streams that are closed, full or read by nobody: one line at most, never a traceback."""

import json
import os
import subprocess
import sys

import pytest
from support.command import only_line

from hotcold.actors.cli.common.commands import COMMANDS

CLOSED = "hotcold: error: standard output is closed"
FULL = "hotcold: error: standard output cannot be written: No space left on device"
# Streams as a shell gives them, what the command does then: its exit code, the line that says why.
CASES: dict[str, tuple[str, dict[int, str | None], int, str | None]] = {
    "stdout closed": ("--help", {1: None}, 1, CLOSED),
    "stdout full": ("--help", {1: "/dev/full"}, 1, FULL),
    "stdout unread": ("--help", {1: "pipe"}, 1, ""),
    "stderr closed": ("--help", {2: None}, 0, None),
    "stderr full": ("--help", {2: "/dev/full"}, 0, None),
    "stderr closed, bad usage": ("--nonsense", {2: None}, 2, None),
    "stderr full, bad usage": ("--nonsense", {2: "/dev/full"}, 2, None),
    "stdin closed": ("--help", {0: None}, 0, ""),
    "all closed": ("--help", {0: None, 1: None, 2: None}, 1, None),
    "both full": ("--help", {1: "/dev/full", 2: "/dev/full"}, 1, None),
}
# All in one process, for a hundred starts of Python are slow.
PROGRAM = """
import json, os, sys
from hotcold.actors.cli.main import COMMANDS, main
NAMES = ("stdin", "stdout", "stderr")
kept = [os.dup(number) for number in range(3)]
found = {}
for case, (option, streams, *_) in json.loads(sys.argv[1]).items():
    for name in COMMANDS:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open("said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        reader, writer = os.pipe()
        os.close(reader)
        for number, path in streams.items():
            if path:
                os.dup2(writer if path == "pipe" else os.open(path, os.O_WRONLY), int(number))
        for number, word in enumerate(NAMES):
            closed = streams.get(str(number), word) is None
            mode = "w" if number else "r"
            stream = None if closed else open(number, mode, closefd=False)
            if closed:
                os.close(number)
            setattr(sys, word, stream)
            setattr(sys, f"__{word}__", stream)
        code = main([name, option])
        found[f"{case}, {name}"] = code, open("said").read()
        os.closerange(kept[-1] + 1, 100)
        for number in range(3):
            os.dup2(kept[number], number)
os.write(1, json.dumps(found).encode())
os._exit(0)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and standard error of each command in each case."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        cwd=tmp_path_factory.mktemp("streams"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("case", CASES)
def test_every_command(ended: dict[str, tuple[int, str]], case: str, name: str) -> None:
    code, said = ended[f"{case}, {name}"]
    _, _, wanted, line = CASES[case]
    assert code == wanted, said
    if line is not None:
        assert only_line(said).startswith(line) if line else said == ""


@pytest.mark.parametrize(
    ("typed", "code", "line"),
    [
        ("policies >&-", 1, CLOSED),
        ("inspect --json >&-", 1, CLOSED),
        ("policies >/dev/full", 1, FULL),
        ("--version >/dev/full", 1, FULL),
        ("generate <&-", 1, "hotcold: error: standard input cannot be read (Bad file descriptor)"),
        ("generate - 0>/dev/null", 1, "hotcold: error: standard input cannot be read"),
        ("policies <&- | head -1 | wc -l", 0, ""),
        ("nonsense 2>/dev/full", 2, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_as_a_shell_does_it(typed: str, code: int, line: str, unbuffered: str) -> None:
    words = f"set -o pipefail; '{sys.executable}' -m hotcold.actors.cli.main {typed}"
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        ["bash", "-c", words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr == "" if not line else only_line(done.stderr).startswith(line)
