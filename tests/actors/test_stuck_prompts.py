"""A dense prompt pass that hangs is told from one that works: on a device that only pretends."""

import ctypes
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.models import TinyLlama, write_llama

from hotcold.actors.group.actor_group import ActorGroup
from hotcold.actors.group.actor_processes import ActorProcesses
from hotcold.actors.group.epoch import SharedEpoch
from hotcold.actors.group.supervisor import _Watch
from hotcold.native.errors import ActorLostError
from hotcold.native.gpu import nvml
from hotcold.native.gpu.nvml import Gpu
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.gpu import GpuChoice
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.exchange.segment import PoisonCode
from hotcold.runtime.options.config import EngineConfig, Sampling

ROOT = Path(__file__).resolve().parents[2]
GPU = Gpu("none at all", "90", 1 << 30, 0)
CHOICE = GpuChoice("float32", None, 1 << 30, 0, 0, prompt_form="dense", prompt_rows=64)
PROMPT = list(range(3, 103))  # two passes
SAMPLING = Sampling(max_tokens=2, ignore_eos=True)
LIMIT_S = 0.3


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    target: Path = tmp_path_factory.mktemp("device") / "still.so"
    source = ROOT / "tests" / "support" / "still_device.c"
    command = [compiler, "-shared", "-fPIC", f"-I{ROOT / 'native'}", str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture
def session(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A session on the pretended device; its prompts last while `hold` is set."""
    write_llama(tmp_path / "model", TinyLlama(vocab=120, context=128))
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    prepared = prepare_model(EngineConfig(model=tmp_path / "model", predictor="exact"))
    made = deploy(replace(prepared, gpu=CHOICE), solve(prepared))
    monkeypatch.setenv("HOTCOLD_CUDA", "require")
    monkeypatch.setenv("HOTCOLD_CUDA_PLUGIN", str(library))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # put back what the executor takes out
    monkeypatch.setattr(nvml, "gpus", lambda: [GPU])
    with LocalSession(made) as local:
        yield local
        word(library, "hold").value = 0


def word(library: Path, name: str) -> ctypes.c_int32:
    return ctypes.c_int32.in_dll(ctypes.CDLL(str(library)), name)


def watched(local: LocalSession) -> tuple[ActorGroup, _Watch]:
    """An actor group as its supervisor sees it, without actors."""
    epoch = SharedEpoch.__new__(SharedEpoch)
    epoch._segment, epoch._deployment = local.segment, local.deployment
    processes = ActorProcesses.__new__(ActorProcesses)
    processes.facts = {}
    group = ActorGroup.__new__(ActorGroup)
    group.epoch, group.processes = epoch, processes
    return group, _Watch(group, LIMIT_S)


def generating(local: LocalSession) -> tuple[threading.Thread, list[Any]]:
    """A request on its way, and what came of it."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(list(local.sample(PROMPT, SAMPLING)))
        except ActorLostError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def until(what: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s")


def test_a_prompt_pass_that_hangs_is_the_gpus(session: LocalSession, library: Path) -> None:
    group, watch = watched(session)
    assert group.epoch.progress() is None
    assert group.epoch.pass_age_s() == 0
    word(library, "works").value, word(library, "hold").value = 0, 1
    thread, outcome = generating(session)
    assert until(lambda: session.segment.native.pass_prompt) == 64
    assert group.epoch.progress() is not None
    ages = []  # as long as the pass is there: once found stuck it ends, and its age with it

    def stuck() -> str | None:
        ages.append(group.epoch.pass_age_s())
        return watch.stuck()

    assert until(stuck) == "gpu"  # not cpu, all of whose flags are set
    assert watch.quiet_s >= LIMIT_S
    assert ages[-1] > LIMIT_S / 2
    poison = session.segment.poisoned
    assert poison is not None
    assert (poison.code, poison.actor) == (PoisonCode.STUCK, "gpu")
    thread.join(10)
    assert isinstance(outcome[0], ActorLostError)
    assert outcome[0].actor == "gpu"


def test_a_prompt_pass_that_works_may_take_its_time(session: LocalSession, library: Path) -> None:
    group, watch = watched(session)
    word(library, "works").value, word(library, "hold").value = 1, 1
    thread, outcome = generating(session)
    until(lambda: session.segment.native.pass_prompt)
    end = time.monotonic() + 4 * LIMIT_S
    while time.monotonic() < end:
        assert watch.stuck() is None
        time.sleep(LIMIT_S / 10)
    word(library, "hold").value = 0
    thread.join(10)
    assert len(outcome[0]) == SAMPLING.max_tokens
    assert session.segment.native.pass_prompt == 0
    assert group.epoch.progress() is None
    assert session.segment.poisoned is None
