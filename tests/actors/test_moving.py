"""Neurons that move between actors while several sequences are decoded, and losses meanwhile."""

import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.formats import Mixed
from support.leaks import assert_nothing_left, left_behind

from hotcold.actors import Engine
from hotcold.native.errors import BudgetError, ConfigError
from hotcold.policies.placement.random import Random
from hotcold.runtime.engine.deployment import solve
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPTS = ["Once upon a time", "The sea", "A small house"]
FIELDS: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
VRAM = "24MiB"


@pytest.fixture(scope="module")
def engine(one_ray: str) -> Iterator[Engine]:
    before = left_behind()
    launched = Engine.launch(vram=VRAM, policy=Random(seed=1), sequences=3, name="moved")
    with launched as running:
        yield running
    del running, launched
    gc.collect()
    assert_nothing_left(before)


def by_index(engine: Engine) -> list[list[int]]:
    found = {one.index: one.token_ids for one in engine.generate_many(PROMPTS, **FIELDS)}
    return [found[index] for index in sorted(found)]


@pytest.fixture(scope="module")
def expected(engine: Engine) -> list[list[int]]:
    return by_index(engine)


def owners(engine: Engine) -> Any:
    return engine._current_deployment().plan.device_LN


def swaps(engine: Engine, seed: int, count: int) -> list[tuple[int, int, str]]:
    """Moves that leave the bytes of every device as they are."""
    rng, device_LN, names = np.random.default_rng(seed), owners(engine), ("cpu0", "gpu0")
    moves = []
    for device, name in enumerate(names):
        places = np.argwhere(device_LN == device)
        chosen = places[rng.choice(len(places), count // 2, replace=False)]
        moves += [(int(layer), int(neuron), name) for layer, neuron in chosen]
    return moves


class Meanwhile:
    """All sequences in a thread of their own, again and again."""

    def __init__(self, engine: Engine) -> None:
        self.found: list[Any] = []
        self._engine, self._ended = engine, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                self.found.append(by_index(self._engine))
        except BaseException as error:  # noqa: BLE001 - shown by the test
            self.found.append(error)

    def __enter__(self) -> "Meanwhile":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_moves_change_no_tokens_and_are_shown(engine: Engine, expected: list[list[int]]) -> None:
    before, connected = engine.stats(), Engine.connect("moved")
    with Meanwhile(engine) as meanwhile:
        for seed in range(4):
            driver = (engine, connected)[seed % 2]
            moves = swaps(driver, seed, 60)
            moved = driver.move(moves)
            assert (moved.neurons, moved.versions) == (60, 1)
            for layer, neuron, device in moves:
                assert owners(engine)[layer, neuron] == ("gpu0", "cpu0").index(device)
            assert np.array_equal(owners(engine), owners(connected))
    assert meanwhile.found == [expected] * len(meanwhile.found)
    after = engine.stats()
    assert after.owners_version - before.owners_version == 4
    assert after.neurons_moved - before.neurons_moved == 240
    assert after.plan_hash == connected.stats().plan_hash != before.plan_hash
    assert {a.pid for a in after.actors.values()} == {a.pid for a in before.actors.values()}
    assert not engine.recoveries


def test_what_cannot_move_is_said_and_nothing_has(engine: Engine) -> None:
    before = engine.stats()
    all_cold = [(int(at[0]), int(at[1]), "gpu0") for at in np.argwhere(owners(engine) == 1)]
    for driver in (engine, Engine.connect("moved")):
        with pytest.raises(BudgetError, match="on gpu0, .* over its budget"):
            driver.move(all_cold)
        with pytest.raises(ConfigError, match="rate 0: 1 byte a second is the least"):
            driver.move(swaps(driver, 0, 2), rate=0)
        with pytest.raises(ConfigError, match="layer 8 is outside 0 to 7"):
            driver.move([(8, 0, "gpu0")])
    after = engine.stats()
    assert (after.plan_hash, after.owners_version) == (before.plan_hash, before.owners_version)


@pytest.mark.parametrize("connected", [False, True], ids=["owner", "connected"])
def test_replan_moves_the_difference(
    engine: Engine, expected: list[list[int]], connected: bool
) -> None:
    driver = Engine.connect("moved") if connected else engine
    epoch, before, was_LN = engine._recovers.epoch, engine.stats(), owners(engine)
    with Meanwhile(engine) as meanwhile:
        driver.replan(policy=Random(seed=7 + connected))
        after = driver.stats()
    assert meanwhile.found == [expected] * len(meanwhile.found)
    different = int(np.count_nonzero(owners(engine) != was_LN))
    assert after.neurons_moved - before.neurons_moved == different > 0
    assert engine._recovers.epoch == epoch
    assert after.actors["gpu"].passes < before.actors["gpu"].passes + 1000  # counted anew
    assert engine.stats().plan_hash == after.plan_hash
    fresh = prepare_model(EngineConfig(vram=VRAM, sequences=3))
    assert solve(fresh, Random(seed=7 + connected)).hash == after.plan_hash


def test_a_layer_that_comes_to_a_device_begins_a_new_epoch(
    engine: Engine, expected: list[list[int]]
) -> None:
    engine.replan(policy="all-cpu")
    epoch = engine._recovers.epoch
    moved = engine.move([(0, 5, "gpu0"), (3, 9, "gpu0")])
    assert moved.neurons == 2 and engine._recovers.epoch == epoch + 1
    assert np.argwhere(owners(engine) == 0).tolist() == [[0, 5], [3, 9]]
    assert by_index(engine) == expected


def test_losses_in_the_middle_of_moves_are_outlived() -> None:
    """Int8 on both devices, so that every neuron that moves is converted into a slot."""
    with Engine.launch(vram="60MiB", policy=Mixed("int8", "int8"), sequences=3) as engine:
        expected, total = by_index(engine), 0
        for victim in ("cpu", "gpu"):
            moves = swaps(engine, 3, 500)  # half a MB of records: a second at this rate
            with Meanwhile(engine) as meanwhile:
                killer = threading.Timer(0.4, os.kill, (engine.pids[victim], signal.SIGKILL))
                killer.start()
                engine.move(moves, rate="500KB")
                killer.join()
            assert meanwhile.found == [expected] * len(meanwhile.found)
            for layer, neuron, device in moves:
                assert owners(engine)[layer, neuron] == ("gpu0", "cpu0").index(device)
            total += len(moves)
        assert [one.actor for one in engine.recoveries] == ["cpu", "gpu"]
        assert engine.stats().neurons_moved == total
