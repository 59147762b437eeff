"""A new plan while tokens run: they go on, the same; and what cannot be used changes nothing."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from support.leaks import assert_nothing_left, left_behind

from hotcold.actors import Engine
from hotcold.native.errors import ConfigError, HotcoldError, PolicyError
from hotcold.policies.placement.all_cpu import AllCpu
from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.placement.random import Random
from hotcold.runtime.engine.deployment import solve
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPT = "Once upon a time"
TOKENS = 900  # most of a second, so that plans come while tokens run
DRAWN: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 11}
VRAM = "24MiB"

POLICY = """import os, time
import numpy as np
from hotcold.policies import Placement
G = 'gpu0'

class Mine:
    def place(self, problem):
        {}
"""
BAD = {
    "raise RuntimeError('boom')": "mine.py:8: RuntimeError: boom",
    "pass": "mine.py:Mine' returned nothing",
    "time.sleep(60)": "mine.py:Mine' did not finish in 1 s",
    "os._exit(3)": "mine.py:Mine' ended its process with exit code 3",
    "return Placement(np.full(problem.shape, np.nan), {})": "mine.py:Mine' returned device_LN of f",
    "return Placement(np.full(problem.shape, 7, 'int8'), {})": "mine.py:Mine'.* 7",
    "return Placement(np.ones((3, problem.shape[1]), 'int8'), {})": "mine.py:Mine'.*shape",
    "return Placement(np.zeros(problem.shape, 'int8'), {m.name: G for m in problem.modules})": (
        "mine.py:Mine' puts .* over its budget"
    ),
}


@pytest.fixture(scope="module")
def engine(one_ray: str) -> Iterator[Engine]:
    before = left_behind()
    with Engine.launch(vram=VRAM, predictor="exact", context=1024, name="replanned") as running:
        yield running
    del running
    gc.collect()
    assert_nothing_left(before)


@pytest.fixture(scope="module")
def undisturbed(engine: Engine) -> dict[bool, list[int]]:
    """The tokens of a generation that keeps its plan, greedy and drawn."""
    return {drawn: ids(engine, drawn) for drawn in (False, True)}


def stream(engine: Engine, drawn: bool = False) -> Iterator[Any]:
    options = DRAWN if drawn else {}
    return engine.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True, **options)


def ids(engine: Engine, drawn: bool = False) -> list[int]:
    return [token.id for token in stream(engine, drawn)]


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_tokens_go_on_as_if_nothing_had_been(
    engine: Engine, undisturbed: dict[bool, list[int]], drawn: bool
) -> None:
    # Objects, which need no process of their own: quick enough to come midway.
    changes = {20: (AllCpu(), None), 60: (Random(seed=5), "paper"), 100: (Greedy(), "selective")}
    before = engine.stats()
    found, plans = [], []
    for token in stream(engine, drawn):
        found.append(token.id)
        if len(found) in changes:
            policy, schedule = changes[len(found)]
            engine.replan(policy, schedule)
            plans.append(engine.stats().plan_hash)
    assert found == undisturbed[drawn]
    after = engine.stats()
    assert len({before.plan_hash, *plans}) == 3 and plans[-1] == before.plan_hash
    assert {a.pid for a in after.actors.values()} == {a.pid for a in before.actors.values()}
    assert engine.last is not None and engine.last.new_tokens == TOKENS
    assert 0 < after.actors["gpu"].passes <= TOKENS - 100  # counted since the last plan was loaded


class Generating:
    """Generates all the while in a thread of its own, and checks every token."""

    def __init__(self, engine: Engine, expected: list[int]) -> None:
        self.engine, self.expected = engine, expected
        self.whole, self.wrong, self._stop = 0, list[Any](), False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop:
                found = ids(self.engine)
                self.whole += 1
                self.wrong += [found] if found != self.expected else []
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.wrong.append(error)

    def __enter__(self) -> "Generating":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()


def test_another_thread_may_replan(engine: Engine, undisturbed: dict[bool, list[int]]) -> None:
    with Generating(engine, undisturbed[False]) as generating:
        for policy in (AllCpu(), Greedy(), "random", Greedy(), AllCpu(), "greedy"):
            engine.replan(policy=policy)
            engine.stats()
    assert generating.whole and not generating.wrong


# A driver of its own. It generates twice, and replans in the second half.
SECOND = """
import json, sys
from hotcold.actors import Engine
from hotcold.policies.placement.all_cpu import AllCpu
from hotcold.policies.placement.greedy import Greedy
from hotcold.native.errors import HotcoldError

engine, found, said = Engine.connect("replanned", address=sys.argv[1]), [[], []], []
options = json.loads(sys.argv[2])
for token in engine.generate(**options):
    found[0].append(token.id)
    if len(found[0]) == 5:
        print("begun", flush=True)
said.append(engine.stats().plan_hash)
for token in engine.generate(**options):
    found[1].append(token.id)
    if len(found[1]) == 5:
        engine.replan(policy=Greedy())
        said.append(engine.stats().plan_hash)
    if len(found[1]) == 60:
        for bad in ({"policy": sys.argv[3]}, {"plan": sys.argv[4]}):
            try:
                engine.replan(**bad)
            except HotcoldError as error:
                said.append(str(error))
        said.append(engine.stats().plan_hash)
print(json.dumps([found, said]))
"""


def test_a_second_driver_keeps_its_tokens_and_may_replan(
    engine: Engine, undisturbed: dict[bool, list[int]], tmp_path: Path
) -> None:
    greedy = engine.stats().plan_hash
    (tmp_path / "mine.py").write_text(POLICY.format("raise RuntimeError('boom')"))
    solve(prepare_model(EngineConfig(vram="30MiB", predictor="exact"))).save(tmp_path / "larger")
    address = ray.get_runtime_context().gcs_address
    request = {"prompt": PROMPT, "max_tokens": TOKENS, "ignore_eos": True}
    second = subprocess.Popen(
        [sys.executable, "-c", SECOND, address, json.dumps(request)]
        + [f"{tmp_path}/mine.py:Mine", str(tmp_path / "larger")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": address},
    )
    assert second.stdout is not None
    try:
        assert second.stdout.readline() == "begun\n"
        engine.replan(policy=AllCpu())  # while the second one generates
        all_cpu = engine.stats().plan_hash
        found, said = json.loads(second.communicate(timeout=120)[0])
    finally:
        second.kill()
        second.wait()
    assert found[0] == found[1] == undisturbed[False]
    assert said[:2] == [all_cpu, greedy] and said[-1] == greedy
    assert "mine.py:8: RuntimeError: boom" in said[2]
    assert "larger" in said[3] and "over its budget" in said[3]
    assert engine.stats().plan_hash == greedy


def test_what_a_policy_does_wrong_leaves_the_plan(
    engine: Engine, undisturbed: dict[bool, list[int]], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    plan = engine.stats().plan_hash
    with Generating(engine, undisturbed[False]) as generating:
        for body, message in BAD.items():
            file.write_text(POLICY.format(body))
            with pytest.raises(PolicyError, match=message) as caught:
                engine.replan(policy=f"{file}:Mine", timeout_s=1.0 if "sleep" in body else 60.0)
            assert "\n" not in str(caught.value)
            assert engine.stats().plan_hash == plan
    assert generating.whole and not generating.wrong


SCHEDULE = """import os, time
from hotcold.policies import in_order


class Mine:
    def schedule(self, dag, plan, hardware):
        {}
"""


def test_what_a_schedule_does_wrong_leaves_the_plan(
    engine: Engine, undisturbed: dict[bool, list[int]], tmp_path: Path
) -> None:
    file, before = tmp_path / "mine.py", engine.stats()
    with Generating(engine, undisturbed[False]) as generating:
        for body, message in {
            "raise RuntimeError('boom')": "mine.py:7: RuntimeError: boom",
            "os._exit(0)": "mine.py:Mine' ended its process with exit code 0",
            "time.sleep(600)": "mine.py:Mine' did not finish in 1 s",
            "pass": "mine.py:Mine' returned nothing",
        }.items():
            file.write_text(SCHEDULE.format(body))
            with pytest.raises(PolicyError, match=message):
                engine.replan(schedule=f"{file}:Mine", timeout_s=1.0 if "sleep" in body else 60.0)
            assert engine.stats().schedule == before.schedule
        file.write_text(SCHEDULE.format("return in_order(dag)"))
        engine.replan(schedule=f"{file}:Mine")
        assert engine.stats().schedule == f"{file}:Mine"
    assert generating.whole and not generating.wrong
    engine.replan(schedule=before.schedule)


def test_a_plan_that_does_not_fit_leaves_the_plan(
    engine: Engine, undisturbed: dict[bool, list[int]], tiny_model: Path, tmp_path: Path
) -> None:
    larger = prepare_model(EngineConfig(vram="30MiB", predictor="exact"))
    solve(larger).save(tmp_path / "larger")
    solve(prepare_model(EngineConfig(model=tiny_model))).save(tmp_path / "foreign")
    solve(prepare_model(EngineConfig(vram="20MiB", predictor="exact"))).save(tmp_path / "fits")
    running = stream(engine)
    found = [next(running).id for _ in range(5)]
    plan = engine.stats().plan_hash
    for name, message in {"larger": "over its budget", "foreign": "another model"}.items():
        with pytest.raises(ConfigError, match=f"{name}.*{message}"):
            engine.replan(plan=tmp_path / name)
        assert engine.stats().plan_hash == plan
    engine.replan(plan=tmp_path / "fits")
    assert engine.stats().bytes_by_device["gpu0"] <= 20 << 20
    assert found + [token.id for token in running] == undisturbed[False]
    engine.replan(policy="greedy")


def test_a_plan_the_actors_refuse_leaves_the_plan(
    engine: Engine, undisturbed: dict[bool, list[int]]
) -> None:
    group = engine._group
    assert group is not None
    running = stream(engine)
    found = [next(running).id for _ in range(5)]
    plan = engine.stats().plan_hash
    gone = replace(group.deployment, bundle_path=Path("/no/such/bundle"))
    with pytest.raises(HotcoldError, match="/no/such/bundle"):
        group.load(gone)
    assert engine.stats().plan_hash == plan
    assert found + [token.id for token in running] == undisturbed[False]
