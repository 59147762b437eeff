"""The predictor in a process of its own on the GPU: the fused one's proposals, and its deaths."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import ids_of, session
from support.gpu_engine import (
    ERROR_S,
    daemons,
    ids,
    launch,
    nothing_left_on_the_gpu,
    park,
    within,
)
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.actors import ActorLostError, Engine
from hotcold.actors.cluster.processes import is_gone
from hotcold.native.errors import HotcoldError
from hotcold.native.gpu import mps, nvml
from hotcold.runtime.engine.executors.base import Executor
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.exchange.segment import ActorState, PoisonCode
from hotcold.runtime.options.config import EngineConfig

pytestmark = pytest.mark.gpu

TINY = {
    "even": TinyLlama(neurons=96, layers=4),
    "odd": TinyLlama(d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301),
    "bfloat16": TinyLlama(d=64, neurons=2500, layers=5, heads=4, kv_heads=2, dtype="bfloat16"),
}
LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "6", "predictor.margin": "0.5"},
}


@pytest.fixture(scope="module", autouse=True)
def daemon_there(plugin: Any) -> None:
    if mps.control_path() is None:
        pytest.skip("nvidia-cuda-mps-control is not on this machine")


# ---- in one process: a stream of its own, and no daemon -----------------------------------------


@pytest.fixture(params=list(TINY), scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    write_llama(folder, TINY[request.param])
    return folder


def both_ways(model: Path, share: float = 0.5, **options: Any) -> tuple[Any, Any]:
    """Logits and proposals of the fused form and of the other one."""
    found = []
    for process in ("fused", "mps"):
        with session(model, share, predictor_process=process, **options) as local:
            found.append(local.logits(ids_of(model, 45)))
            if process == "mps":
                assert_counted(local)
    return found[0], found[1]


def assert_counted(local: LocalSession) -> None:
    """Every layer of every pass was asked for, and time went into it on both sides."""

    def state(actor: str) -> ActorState:
        return local.segment.actor_state(actor)

    passes = state("gpu").passes
    within(2, lambda: state("predictor").passes == passes, "the predictor is passes behind")
    wanted = passes * local.deployment.spec.n_layers
    assert state("gpu").asks == state("predictor").asks == wanted
    assert 0 < state("predictor").busy_ns < state("gpu").asked_ns


def assert_same(model: Path, fused: Any, remote: Any) -> None:
    """The oracle's logits; proposals alike but for some at the threshold, which a norm may move."""
    (_, fused_TLN), (logits, masks_TLN) = fused, remote
    assert 0 < masks_TLN.mean() < 1
    assert (fused_TLN != masks_TLN).mean() < 1e-3
    expected = Oracle.load(model).forward(ids_of(model, 45), masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)


@pytest.mark.parametrize("batch", [5, 1])
@pytest.mark.parametrize("schedule", ["selective", "lookahead"])
def test_proposals_are_the_fused_ones(tiny: Path, batch: int, schedule: str) -> None:
    fused, remote = both_ways(tiny, max_batch=batch, schedule=schedule, **LOW_RANK)
    assert_same(tiny, fused, remote)


@pytest.mark.parametrize("tiny", ["odd"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {**LOW_RANK, "predictor_dtype": "int8"},
        {"predictor": "sign"},
        {**LOW_RANK, "schedule": "lookahead", "share": 0.0},
        {**LOW_RANK, "share": 1.0},
    ],
    ids=["int8", "sign", "all-cold", "all-hot"],
)
def test_every_kind_of_predictor_and_share(tiny: Path, options: dict[str, Any]) -> None:
    assert_same(tiny, *both_ways(tiny, **options))


@pytest.mark.alone
@pytest.mark.parametrize("tiny", ["even"], indirect=True)
@pytest.mark.parametrize("missing", ["predictor", "cpu"])
def test_poison_ends_graphs_that_wait_for_each_other(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Without the predictor one waits for an answer; without the CPU executor, for a question."""
    run = Executor.run

    def stay_away(executor: Executor) -> None:
        while executor.segment.poisoned is None:
            time.sleep(0.01)

    monkeypatch.setattr(Executor, "run", lambda e: (stay_away if e.actor == missing else run)(e))
    before = nvml.used_bytes() or 0
    failure: list[HotcoldError] = []
    with session(tiny, 0.5, predictor_process="mps", **LOW_RANK) as local:

        def ask() -> None:
            try:
                local.logits(ids_of(tiny, 40))
            except HotcoldError as error:
                failure.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        assert asking.is_alive()
        local.segment.poison(PoisonCode.DIED, missing)
        asking.join(ERROR_S)
        assert not asking.is_alive()
        assert isinstance(failure[0], ActorLostError) and failure[0].actor == missing
    assert (nvml.used_bytes() or 0) - before < 700 << 20  # the context at most, which stays


# ---- under MPS: the three actors, and what is left of them --------------------------------------


@pytest.fixture
def gpu_left_alone(one_ray: str) -> Iterator[None]:
    with nothing_left_on_the_gpu():
        yield


@pytest.mark.alone
@pytest.mark.ray
def test_tokens_are_the_fused_ones_and_the_budget_holds(gpu_left_alone: None) -> None:
    options: dict[str, Any] = {"predictor": "low-rank", "predictor_process": "mps"}
    prepared = prepare_model(EngineConfig(vram="4GiB", **options))
    assert prepared.gpu is not None
    vram, before = prepared.gpu.reserve_bytes + (96 << 20), nvml.used_bytes() or 0
    remote, fused = [], []
    with launch("low-rank", 0, vram=vram, predictor_process="mps") as engine:
        assert engine.shares_gpu
        remote.append(ids(engine))
        assert len(daemons()) == 2  # control and server
        assert_answered(engine)
        engine.replan(schedule="lookahead")  # the predictor gives the memory up and maps it anew
        remote.append(ids(engine))
        assert_answered(engine)
        assert 0 < (nvml.used_bytes() or 0) - before <= vram
    assert not daemons()
    with launch("low-rank", 0) as engine:
        assert not engine.shares_gpu
        fused.append(ids(engine))
        engine.replan(schedule="lookahead")
        fused.append(ids(engine))
        assert engine.stats().actors["gpu"].asks == 0
    assert remote == fused and remote[0] != remote[1]


def assert_answered(engine: Engine) -> None:
    """Every question had its answer, by a process of its own."""
    within(
        2,
        lambda: len({a.asks for name, a in engine.stats().actors.items() if name != "cpu"}) == 1,
        "questions without an answer",
    )
    actors = engine.stats().actors
    assert actors["gpu"].asks > 0
    assert 0 < actors["predictor"].busy_s < actors["gpu"].asked_s
    assert "under MPS" in actors["predictor"].role


def victim_pid(engine: Engine, victim: str) -> int:
    """Of an actor, or of a part of the daemon."""
    if victim in ("gpu", "cpu", "predictor"):
        return engine.stats().actors[victim].pid
    assert engine._group is not None
    daemon = engine._group._mps._daemon
    assert daemon is not None
    if victim == "guard":
        return daemon.pid
    commands = {p: Path(f"/proc/{p}/cmdline").read_text() for p in mps._members(daemon.folder)}
    (pid,) = (p for p, command in commands.items() if f"nvidia-cuda-mps-{victim}" in command)
    return pid


KILLS = [  # who stands still and so parks the others, who is killed, who the error may name
    ("predictor", "predictor", {"predictor"}),
    ("cpu", "gpu", {"gpu"}),
    ("predictor", "server", {"gpu", "predictor"}),
    ("cpu", "cpu", {"cpu"}),
]
MORE = [
    ("predictor", "gpu", {"gpu"}),
    ("cpu", "predictor", {"predictor"}),
    # Who stands still is ended too, and Ray may tell of that first.
    ("gpu", "predictor", {"gpu", "predictor"}),
    ("cpu", "server", {"gpu", "predictor"}),
    ("predictor", "control", {"gpu", "predictor"}),
    ("cpu", "guard", {"gpu", "predictor"}),
]
OPS = {"cpu": "cold", "gpu": "merge", "predictor": "predict"}


def kill_while_parked(engine: Engine, stopped: str, victim: str, named: set[str]) -> None:
    """One death: a typed error in time, then all that shared the GPU anew, and the same tokens."""
    undisturbed, past = ids(engine), len(engine.recoveries)
    pids = {actor: state.pid for actor, state in engine.stats().actors.items()}
    pid = victim_pid(engine, victim)
    consumer, errors = park(engine, stopped, OPS[stopped])
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    consumer.join(20)
    took = time.monotonic() - began
    with suppress(ProcessLookupError):
        os.kill(pids[stopped], signal.SIGCONT)
    (error,) = errors
    assert isinstance(error, ActorLostError), error
    assert error.actor in named
    assert took < ERROR_S, f"the error came after {took:.2f} s"
    assert error.token_ids == undisturbed[: len(error.token_ids)]
    within(30, lambda: len(engine.recoveries) > past, "the actors were not rebuilt")
    print(f"{victim} killed, {stopped} stopped: error after {took:.2f} s; {engine.recoveries[-1]}")
    assert ids(engine) == undisturbed
    rebuilt, clients = {a for a, old in pids.items() if engine.pids[a] != old}, {"gpu", "predictor"}
    assert rebuilt & clients == (set() if victim == "cpu" else clients)
    assert all(is_gone(pids[actor]) for actor in rebuilt)
    assert len(daemons()) == 2  # the old one is gone


@pytest.mark.alone
@pytest.mark.ray
@pytest.mark.parametrize("kills", [KILLS, pytest.param(MORE, marks=pytest.mark.slow)])
def test_killed_while_graphs_are_parked(
    gpu_left_alone: None, kills: list[tuple[str, str, set[str]]]
) -> None:
    with launch("low-rank", 0, predictor_process="mps") as engine:
        for stopped, victim, named in kills:
            kill_while_parked(engine, stopped, victim, named)
        pids = engine.pids
    assert all(is_gone(pid) for pid in pids.values())
    assert not daemons()


@pytest.mark.alone
@pytest.mark.ray
def test_a_killed_driver_leaves_nothing(plugin: Any) -> None:
    code = """
from support.gpu_engine import ids, launch
engine = launch("low-rank", 0, predictor_process="mps")
ids(engine)
print("up", flush=True)
while True:
    ids(engine)
"""
    with nothing_left_on_the_gpu():
        path = os.pathsep.join(p for p in sys.path if p)
        environment = {**os.environ, "PYTHONPATH": path, "RAY_ADDRESS": "local"}
        driver = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert driver.stdout is not None
        assert driver.stdout.readline().strip() == "up"
        assert len(daemons()) == 2
        driver.kill()
        driver.communicate()
