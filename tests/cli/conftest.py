"""The command line with an engine that computes nothing."""

import io
import sys
from collections.abc import Iterator

import pytest
from support import fake_engine
from support.command import Ended, Run
from support.fake_engine import FakeEngine

from hotcold.runtime.cli.main import main


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeEngine]]:
    """The engines launched by this test, oldest first."""
    monkeypatch.setitem(sys.modules, "hotcold.actors", fake_engine.module())
    fake_engine.LAUNCHED.clear()
    yield fake_engine.LAUNCHED
    fake_engine.LAUNCHED.clear()


@pytest.fixture
def run(
    engines: list[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run the command line in this process: run("generate", "Hello", stdin=b"")."""

    def call(*argv: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main(argv)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call
