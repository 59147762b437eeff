"""Actors may be lost, generations go on: with the same tokens, and nothing left behind."""

import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from hotcold.actors import ActorLostError, Engine
from hotcold.actors.processes import is_gone

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
    return Engine.launch(restarts=3, **options)


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
        after = engine.stats()
        survivors = {"gpu", "cpu", "predictor"} - {actor}
        assert {after.actors[a].pid for a in survivors} == {before.actors[a].pid for a in survivors}
        assert after.actors[actor].pid != before.actors[actor].pid
        assert engine.last is not None
        assert engine.last.new_tokens == SAMPLING["max_tokens"]


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


@pytest.mark.parametrize("actor", ["gpu", "cpu", "predictor"])
def test_alive_but_stuck_counts_as_dead(actor: str, undisturbed: list[int]) -> None:
    with launch(stuck_s=0.5) as engine:
        arm(
            engine,
            actor,
            {"gpu": "hot", "cpu": "cold", "predictor": "predict"}[actor],
            12,
            signal.SIGSTOP,
        )
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


def test_an_idle_loss_is_mended_before_the_next_request(undisturbed: list[int]) -> None:
    with launch() as engine:
        other = Engine.connect(engine.name, restarts=3)
        for victim in ("cpu", "gpu"):
            os.kill(engine.stats().actors[victim].pid, signal.SIGKILL)
        assert [token.id for token in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        assert [token.id for token in other.generate(PROMPT, **SAMPLING)] == undisturbed


def test_a_connected_engine_goes_on_too(undisturbed: list[int]) -> None:
    with launch() as engine:
        other = Engine.connect(engine.name, restarts=3)
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
