"""The command line with an engine that computes nothing."""

import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from support import fake_engine
from support.command import Ended, Run
from support.fake_engine import FakeEngine
from support.problems import tiny_plan

from hotcold.actors.cli.compare import command as compare
from hotcold.actors.cli.compare import subjects
from hotcold.actors.cli.compare.cases import Case
from hotcold.actors.cli.compare.solving import Ready
from hotcold.actors.cli.main import main
from hotcold.native.errors import PolicyError
from hotcold.runtime.hardware.machine_file import load_hardware
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.cost import LayerTime, TokenTime
from hotcold.runtime.plan.plan import Plan


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


def plan_of(policy: str) -> Plan:
    """One plan a name; "same as NAME" has that of NAME."""
    device_LN = np.random.default_rng(zlib.crc32(policy.rpartition(" ")[2].encode())).integers(
        2, size=(2, 40), dtype=np.int8
    )
    return tiny_plan(device_LN)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Placements by name: the fake engine knows nothing else of them."""

    def fake(options: EngineConfig, wanted: Sequence[Case]) -> list[Ready]:
        if any(case.policy == "broken" for case in wanted):
            raise PolicyError("broken.py:7: RuntimeError: boom")
        hardware = load_hardware(options.hardware or "pc-high")
        return [
            Ready(
                *(case, case.policy, case.schedule, plan_of(case.policy), 0.6),  # type: ignore[arg-type]
                TokenTime((LayerTime(0.0, 0.0, 1e-3 * (1 + i), 0.0),), 0.0),
                *(hardware, False),
            )
            for i, case in enumerate(wanted)
        ]

    monkeypatch.setattr(compare, "solve_all", fake)
    monkeypatch.setattr(subjects, "planted_model", lambda: tmp_path / "planted")
