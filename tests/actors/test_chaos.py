"""Chaos finds what goes wrong, and in a short run as a user starts it, nothing does."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hotcold.actors.bench import chaos, faults
from hotcold.actors.cluster.processes import is_gone
from hotcold.native.abi import names

OPS = {
    "gpu": ["embed", "attention", "hot", "merge", "head"],
    "cpu": ["cold"],
    "predictor": ["predict"],
}


class Fake:
    """An engine of nobody: what it gets wrong is said by name."""

    def __init__(self, fault: str = "") -> None:
        self.fault, self.requests, self.left = fault, 0, -1
        self.recoveries: list[Any] = []
        self.actors: dict[str, Any] = {}
        self.hang, self.sequences = threading.Event(), 1
        self.pids = dict.fromkeys(OPS, 0)
        self.programs = {
            actor: {"op": [names.OPS.index(op) for op in ops]} for actor, ops in OPS.items()
        }

    @property
    def is_whole(self) -> bool:
        return not any(is_gone(pid) for pid in self.pids.values())

    def generate(self, prompt: str, max_tokens: int, **sampling: Any) -> Iterator[Any]:
        self.requests += 1
        disturbed = self.requests > len(faults.CASES)
        if disturbed and self.fault == "leaks":
            self.left = os.memfd_create("hotcold-left")
        for number in range(max_tokens):
            if disturbed and number == max_tokens // 2:
                if self.fault == "hangs":
                    self.hang.wait()
                if self.fault == "errors":
                    raise RuntimeError("lost")
            wrong = disturbed and self.fault == "wrong_tokens" and number == max_tokens // 2
            yield type("Token", (), {"id": -1 if wrong else number})
        if not disturbed:
            self.pids = dict.fromkeys(OPS, os.getpid())

    def close(self) -> None:
        self.hang.set()
        if self.left >= 0:
            os.close(self.left)


@pytest.mark.parametrize("fault", ["", "hangs", "errors", "wrong_tokens", "leaks"])
def test_what_goes_wrong_is_counted(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "HANG_S", 0.3)
    monkeypatch.setattr(chaos, "WHOLE_S", 0.1)
    monkeypatch.setattr(chaos, "strike", lambda engine, fault: True)
    engines = iter([Fake(fault), Fake()])
    tally = chaos.run(lambda: next(engines), runs=1, seed=1)  # type: ignore[arg-type, return-value]
    found = tally.to_json()
    wrong = [name for name in ("hangs", "errors", "wrong_tokens", "leaks") if found[name]]
    assert wrong == ([fault] if fault else [])
    assert tally.is_clean is not bool(fault)
    assert found["runs"] == 1 and found["faults"] >= 1


def test_an_actor_that_is_not_replaced_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "WHOLE_S", 0.1)
    engine = Fake()
    with subprocess.Popen(["true"]) as ended:
        pass

    def strike(_engine: Any, _fault: faults.Fault) -> bool:
        engine.pids["cpu"] = ended.pid
        return True

    monkeypatch.setattr(chaos, "strike", strike)
    tally = chaos.run(lambda: engine, runs=1, seed=1)  # type: ignore[arg-type, return-value]
    assert tally.errors == 1
    assert "was not replaced" in tally.complaints[0]


def test_faults_come_from_the_seed_alone_and_of_every_kind() -> None:
    runs = [faults.draw(random.Random(_), 8, OPS) for _ in range(2000)]
    assert runs == [faults.draw(random.Random(_), 8, OPS) for _ in range(2000)]
    struck = [fault for run in runs for fault in run.faults]
    assert {fault.actor for fault in struck} == {"", *OPS}
    assert {fault.number for fault in struck} == {0, signal.SIGKILL, signal.SIGSTOP}
    ops = {fault.op for fault in struck}
    assert ops == {None, *faults.POLICIES, *(op for group in OPS.values() for op in group)}
    assert min(fault.at for fault in struck) == -1
    asks = [ask for run in runs for ask in run.asks]
    assert {ask.case for ask in asks} == set(range(len(faults.CASES)))
    assert {sum(ask.at < 0 for ask in run.asks) for run in runs} == set(range(1, 9))
    assert any(ask.at >= 0 for ask in asks) and any(ask.taken < ask.tokens for ask in asks)
    alone = [faults.draw(random.Random(_), 1, OPS).asks for _ in range(20)]
    assert {(len(asks), asks[0].tokens, asks[0].taken) for asks in alone} == {(1, 240, 240)}


@pytest.mark.ray
@pytest.mark.slow
def test_chaos_finds_nothing() -> None:
    command = [sys.executable, "-m", "hotcold.actors.cli.main", "chaos", "--runs", "6"]
    command += ["--sequences", "4"]
    done = subprocess.run(
        [*command, "--seed", "13", "--json"],
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    wrong = ("hangs", "errors", "wrong_tokens", "leaks")
    assert [result[name] for name in wrong] == [0, 0, 0, 0]
    assert result["complaints"] == []
    assert result["runs"] == 6
    assert result["faults"] >= 6
    assert 3 <= result["recoveries"] <= result["faults"]
    assert 0 < result["recovery_median_s"] <= result["recovery_max_s"]
    assert "to the next token" in result["slowest"]
