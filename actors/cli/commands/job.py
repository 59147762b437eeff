"""The job's side of `hotcold submit`: what Ray runs on the cluster, `python -m ...cli.job`.

Runs one command as a child, sends its messages, its files and its exit code through the job's log
(`jobstream.py`), and says in one line what the cluster lacks where the command cannot even start.
Standard library only, for it runs before anything is known about the cluster's Python. Not a
command for users.
"""

from __future__ import annotations

import argparse
import codecs
import importlib.metadata
import os
import platform
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

from hotcold.actors.jobs import jobstream

READ_BYTES = 65536


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    # `ray job stop` signals every process of the job; the command cleans up, this one awaits it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    parser = argparse.ArgumentParser(prog="hotcold-job")
    parser.add_argument("--fetch", action="append", default=[])
    parser.add_argument("--machine", default=platform.machine())
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    _write(jobstream.frame(jobstream.BEGIN))
    problem = lacking(given.machine)
    if problem is None:
        words = given.command[1:] if given.command[:1] == ["--"] else given.command
        code = run(words)
        if given.fetch and code >= 0:
            send_back([Path(path) for path in given.fetch])
    else:
        code = _error(problem)
    code = code if code >= 0 else 128 - code
    _write(jobstream.frame(jobstream.EXIT, f"{code}\n"))
    return code


def lacking(machine: str) -> str | None:
    """What this Python lacks to run hotcold, as a sentence; None where nothing is missing."""
    if sys.version_info < (3, 10):  # noqa: UP036 - the cluster's Python, not ours
        return f"the cluster runs Python {platform.python_version()}, hotcold needs 3.10 or newer"
    if platform.machine() != machine:
        return (
            f"the kernels sent are for {machine}, this node is {platform.machine()}; "
            "submit with --wheel and a wheel built for it"
        )
    try:
        needs = importlib.metadata.requires("hotcold") or []
    except importlib.metadata.PackageNotFoundError:
        return None  # sent from a checkout that is not installed; imports will tell
    missing = []
    for need in needs:
        name = re.match(r"[\w.-]+", need)
        if name is None or "extra ==" in need:
            continue
        try:
            importlib.metadata.version(name.group())
        except importlib.metadata.PackageNotFoundError:
            missing.append(name.group())
    if not missing:
        return None
    return (
        f"the cluster's Python ({sys.executable}) has no {', '.join(missing)}; submit with "
        "--install, or install them on every node"
    )


def run(words: list[str]) -> int:
    """Run a command of hotcold, or of Python, with its messages in frames; negative: a signal."""
    python = [sys.executable, "-u"]
    command = python + (words[1:] if words[:1] == ["python"] else [])
    if words[:1] != ["python"]:
        command += ["-m", "hotcold.actors.cli.main", *words]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    _relay(child, child.stderr.fileno())
    return child.wait()


def _relay(child: subprocess.Popen[bytes], pipe: int) -> None:
    """Hand on what the child says until it has ended; who inherited the pipe may live longer."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ended = False
    while True:
        ready, _, _ = select.select([pipe], [], [], 0.0 if ended else 0.1)
        if ready:
            content = os.read(pipe, READ_BYTES)
            text = decoder.decode(content)
            if text:
                _write(jobstream.frame(jobstream.ERROR, text))
            if not content:
                return
        elif ended:
            return
        else:
            ended = child.poll() is not None


def send_back(paths: list[Path]) -> None:
    """Send files and folders through the log; a message for what is not there."""
    there = [path for path in paths if path.exists()]
    for path in paths:
        if path not in there:
            _error(f"--fetch {path}: the command wrote no such file or folder")
    if not there:
        return
    try:
        content = jobstream.pack_files(there)
    except (OSError, ValueError) as error:
        _error(f"--fetch: {error}")
        return
    for one in jobstream.file_frames(content):
        _write(one)


def _error(text: str) -> int:
    _write(jobstream.frame(jobstream.ERROR, f"hotcold: error: {text}\n"))
    return 1


def _write(text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
