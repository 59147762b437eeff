"""Actors may be lost, generations go on: with the same tokens, and nothing left behind."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold.actors import ActorLostError, Engine
from hotcold.actors.cluster.processes import is_gone, is_stopped
from hotcold.runtime.exchange.segment import PoisonCode

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("one_ray"),
]
PROMPT = "Once upon a time"
SAMPLING: dict[str, Any] = {"max_tokens": 60, "temperature": 0.8, "seed": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def undisturbed() -> list[int]:
    with launch() as engine:
        return [token.id for token in engine.generate(PROMPT, **SAMPLING)]


def launch(**options: Any) -> Engine:
    return Engine.launch(**options)  # three losses are survived by default


def arm(engine: Engine, actor: str, op: str, at_pass: int, number: int = signal.SIGKILL) -> None:
    import ray

    ray.get(engine.actors[actor].arm.remote(op, at_pass, int(number)))


@pytest.mark.parametrize(
    ("actor", "op"),
    [
        ("gpu", "embed"),
        ("gpu", "attention"),
        ("gpu", "hot"),
        ("gpu", "merge"),
        ("gpu", "head"),
        ("predictor", "predict"),
        ("cpu", "cold"),
    ],
)
def test_killed_at_every_kind_of_step(actor: str, op: str, undisturbed: list[int]) -> None:
    with launch() as engine:
        before = engine.stats()
        arm(engine, actor, op, 9)
        assert [token.id for token in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        (recovery,) = engine.recoveries
        assert (recovery.actor, recovery.cause) == (actor, "died")
        phases = (recovery.notice_s, recovery.end_s, recovery.start_s, recovery.load_s)
        assert all(0 < phase < recovery.total_s for phase in (*phases, recovery.replay_s))
        assert recovery.total_s == pytest.approx(sum(phases) + recovery.replay_s)
        after = engine.stats()
        survivors = {"gpu", "cpu", "predictor"} - {actor}
        assert {after.actors[a].pid for a in survivors} == {before.actors[a].pid for a in survivors}
        assert after.actors[actor].pid != before.actors[actor].pid
        assert engine.last is not None
        assert engine.last.new_tokens == SAMPLING["max_tokens"]


STEP = {"gpu": "hot", "cpu": "cold", "predictor": "predict"}


@pytest.mark.parametrize(
    ("victim", "awaited"),
    [("gpu", "predictor"), ("gpu", "cpu"), ("cpu", "predictor"), ("predictor", "gpu")],
)
def test_killed_while_it_waits_for_another(
    victim: str, awaited: str, undisturbed: list[int]
) -> None:
    with launch(stuck_s=60.0) as engine:
        pids = engine.pids
        arm(engine, awaited, STEP[awaited], 9, signal.SIGSTOP)
        stream = engine.generate(PROMPT, **SAMPLING)
        ids = [next(stream).id]
        while not is_stopped(pids[awaited]):
            time.sleep(0.01)
        time.sleep(0.05)  # the victim is parked on a flag by now, and asleep
        os.kill(pids[victim], signal.SIGKILL)
        ids += [token.id for token in stream]
        assert ids == undisturbed
        (recovery,) = engine.recoveries
        assert (recovery.actor, recovery.cause) == (victim, "died")
        assert is_gone(pids[awaited])


def test_killed_over_the_ray_transport(undisturbed: list[int]) -> None:
    sampling = {**SAMPLING, "max_tokens": 30}
    with launch(transport="ray") as engine:
        for victim in ("cpu", "gpu"):
            ids = []
            for token in engine.generate(PROMPT, **sampling):
                ids.append(token.id)
                if len(ids) == 10:
                    os.kill(engine.pids[victim], signal.SIGKILL)
            assert ids == undisturbed[:30]
            assert engine.recoveries[-1].actor == victim
        expected = engine.logits([1, 2, 3])
        os.kill(engine.pids["predictor"], signal.SIGKILL)
        np.testing.assert_array_equal(engine.logits([1, 2, 3]), expected)


@pytest.mark.parametrize(
    ("second", "number"),
    [("gpu", signal.SIGKILL), ("predictor", signal.SIGKILL), ("predictor", signal.SIGSTOP)],
)
def test_lost_while_another_is_replaced(
    second: str, number: signal.Signals, undisturbed: list[int]
) -> None:
    with launch(stuck_s=0.5) as engine:
        stream = engine.generate(PROMPT, **SAMPLING)
        ids = [next(stream).id]
        os.kill(engine.pids["cpu"], signal.SIGKILL)
        time.sleep(0.2)
        os.kill(engine.pids[second], number)
        ids += [token.id for token in stream]
        assert ids == undisturbed
        assert engine.recoveries[0].actor == "cpu"


def test_an_actor_that_failed_gets_a_new_process(undisturbed: list[int]) -> None:
    with launch() as engine:
        stream = engine.generate(PROMPT, **SAMPLING)
        ids, pid = [next(stream).id], engine.pids["cpu"]
        assert engine._group is not None
        engine._group.epoch.end(PoisonCode.FAILED, "cpu")  # as its loop does
        ids += [token.id for token in stream]
        assert ids == undisturbed
        assert [(r.actor, r.cause) for r in engine.recoveries] == [("cpu", "failed")]
        assert is_gone(pid) and engine.pids["cpu"] != pid


def test_closed_while_an_actor_is_replaced() -> None:
    with launch() as engine:
        os.kill(engine.pids["cpu"], signal.SIGKILL)
        time.sleep(0.1)
        engine.close()
        engine.close()


def test_killed_in_the_prompt() -> None:
    ids = np.random.default_rng(1).integers(3, 8000, 200).tolist()
    with launch() as engine:
        expected = [token.id for token in engine.generate(ids, max_tokens=10)]
        passes = engine.stats().actors["gpu"].passes
        arm(engine, "cpu", "cold", passes + 3)
        assert [token.id for token in engine.generate(ids, max_tokens=10)] == expected
        assert len(engine.recoveries) == 1
        arm(engine, "predictor", "predict", 2)
        logits = engine.logits(ids)
        np.testing.assert_array_equal(logits, engine.logits(ids))
        assert len(engine.recoveries) == 2


def test_three_in_a_row_and_the_fourth_ends_it_with_the_text(undisturbed: list[int]) -> None:
    with launch(context=1024) as engine:
        ids: list[int] = []
        text = ""
        killed = 0
        with pytest.raises(ActorLostError) as caught:
            for token in engine.generate(PROMPT, **{**SAMPLING, "max_tokens": 900}):
                ids.append(token.id)
                text += token.text
                if len(ids) in (5, 205, 405, 605):  # far enough apart to be noticed one by one
                    victim = ("gpu", "cpu", "predictor", "cpu")[killed]
                    os.kill(engine.stats().actors[victim].pid, signal.SIGKILL)
                    killed += 1
                    while len(engine.recoveries) < killed:
                        time.sleep(0.01)
        assert killed == 4
        assert caught.value.actor == "cpu"
        assert ids[:60] == undisturbed
        assert len(ids) >= 605
        assert caught.value.text == text
        assert caught.value.token_ids[: len(ids)] == ids
        assert [r.actor for r in engine.recoveries[:3]] == ["gpu", "cpu", "predictor"]
        again = [token.id for token in engine.generate(PROMPT, **SAMPLING)]
        assert again == undisturbed


@pytest.mark.parametrize(
    ("actor", "options"),
    [
        ("gpu", {"stuck_s": 0.5}),
        ("cpu", {"stuck_s": 0.5}),
        ("predictor", {"stuck_s": 0.5}),
        ("cpu", {}),
    ],
)
def test_alive_but_stuck_counts_as_dead(
    actor: str, options: dict[str, float], undisturbed: list[int]
) -> None:
    with launch(**options) as engine:
        arm(engine, actor, STEP[actor], 12, signal.SIGSTOP)
        pid = engine.stats().actors[actor].pid
        assert [token.id for token in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        (recovery,) = engine.recoveries
        assert (recovery.actor, recovery.cause) == (actor, "stuck")
        assert is_gone(pid)


def test_a_stop_shorter_than_the_limit_changes_nothing(undisturbed: list[int]) -> None:
    with launch(stuck_s=5.0) as engine:
        arm(engine, "cpu", "cold", 12, signal.SIGSTOP)
        pid = engine.stats().actors["cpu"].pid
        stream = engine.generate(PROMPT, **SAMPLING)
        ids = [next(stream).id]
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)
        ids += [token.id for token in stream]
        assert ids == undisturbed
        assert engine.recoveries == []


def test_stopped_while_idle_counts_as_dead_too(undisturbed: list[int]) -> None:
    with launch(stuck_s=0.5) as engine:
        pid = engine.pids["cpu"]
        os.kill(pid, signal.SIGSTOP)
        while not engine.recoveries:
            time.sleep(0.02)
        assert is_gone(pid)
        assert [token.id for token in engine.generate(PROMPT, **SAMPLING)] == undisturbed


def test_killed_by_the_kernel_for_its_memory(undisturbed: list[int]) -> None:
    with memory_group() as (processes, limit), launch() as engine:
        limit.write_text(str(1 << 20))  # what is touched from now on
        stream = engine.generate(PROMPT, **{**SAMPLING, "max_tokens": 400})
        ids = [next(stream).id]
        processes.write_text(str(engine.pids["cpu"]))
        engine.actors["cpu"].arm.remote("a name of 16 MB" * (1 << 20), 0, 0)
        ids += [token.id for token in stream]
        while not engine.recoveries:
            time.sleep(0.01)
        assert ids[:60] == undisturbed
        assert len(ids) == 400
        assert [(r.actor, r.cause) for r in engine.recoveries] == [("cpu", "died")]


@contextmanager
def memory_group() -> Iterator[tuple[Path, Path]]:
    """A control group of its own: the files that take a process and its limit in bytes."""
    root = Path("/sys/fs/cgroup")
    first, limit = (root / "memory", "memory.limit_in_bytes")
    if not first.is_dir():
        first, limit = (root, "memory.max")
    group = first / f"hotcold-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("this machine's control groups do not limit memory")
        yield group / "cgroup.procs", group / limit
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.02)
        group.rmdir()


def test_an_idle_loss_is_mended_before_the_next_request(undisturbed: list[int]) -> None:
    with launch() as engine:
        other = Engine.connect(engine.name)
        for victim in ("cpu", "gpu"):
            os.kill(engine.stats().actors[victim].pid, signal.SIGKILL)
        assert [token.id for token in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        assert [token.id for token in other.generate(PROMPT, **SAMPLING)] == undisturbed


def test_a_connected_engine_goes_on_too(undisturbed: list[int]) -> None:
    with launch() as engine:
        other = Engine.connect(engine.name)
        for victim in ("cpu", "gpu"):
            ids = []
            for token in other.generate(PROMPT, **SAMPLING):
                ids.append(token.id)
                if len(ids) == 10:
                    os.kill(engine.stats().actors[victim].pid, signal.SIGKILL)
            assert ids == undisturbed


def test_replan_after_a_recovery(undisturbed: list[int]) -> None:
    with launch(vram="24MiB") as engine:
        arm(engine, "cpu", "cold", 3)
        assert [t.id for t in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        engine.replan(policy="random")
        assert [t.id for t in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        assert len(engine.recoveries) == 1
