"""`hotcold watch`: views for people and for scripts, and the one line of what goes wrong."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from support.command import Run, only_line
from support.telemetry import published

from hotcold.actors.cli.commands import watch


def test_once(run: Run) -> None:
    with published() as address:
        ended = run("watch", address, "--once")
    assert ended.code == 0, ended.err
    assert "engine lab" in ended.out and "tokens/s" in ended.out and "\x1b" not in ended.out
    assert "epoch 1" in ended.out and ended.err == ""


def test_once_as_json(run: Run) -> None:
    with published() as address:
        ended = run("watch", address, "--once", "--json")
    seen = json.loads(only_line(ended.out))
    assert seen["engine"] == "lab" and seen["tokens_per_s"] > 0
    assert set(seen["actors"]) == {"gpu", "cpu", "predictor"}
    assert seen["layers"][0] == {"owned": [16, 48], "listed": [3, 2], "pass": 12}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("nowhere://x",), "is no address"),
        (("tcp://127.0.0.1:9", "--address", "h:1"), "needs no Ray cluster"),
        (("tcp://127.0.0.1:9", "--once"), "nothing was heard of tcp://127.0.0.1:9"),
    ],
)
def test_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr(watch, "FIRST_S", 0.5)
    ended = run("watch", *argv)
    assert ended.code == 2
    assert expected in only_line(ended.err) and ended.out == ""


def heed_interrupts() -> None:
    """A run of tests in the background ignores them, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_in_a_terminal_until_control_c() -> None:
    """The other screen is left again, and the code is 0: that is how one leaves."""
    command = [sys.executable, "-m", "hotcold.actors.cli.main", "watch"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "12"}
    environment.pop("NO_COLOR", None)
    with published() as address:
        above, below = pty.openpty()
        process = subprocess.Popen(
            [*command, address],
            stdin=below,
            stdout=below,
            stderr=below,
            env=environment,
            preexec_fn=heed_interrupts,  # noqa: PLW1509 - it takes no lock
        )
        os.close(below)
        shown, deadline = b"", time.monotonic() + 30
        while b"tokens/s" not in shown and time.monotonic() < deadline:
            shown += os.read(above, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # until the child has closed its end; it waits where nobody reads
            while more := os.read(above, 65536):
                shown += more
        assert process.wait(10) == 0
        os.close(above)
    assert shown.startswith(b"\x1b[?1049h") and shown.rstrip().endswith(b"\x1b[?1049l")
    assert b"\x1b[33m" in shown and b"Traceback" not in shown and b"more lines" in shown
