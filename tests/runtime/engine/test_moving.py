"""Neurons that change their device while tokens run: all of them or none, same tokens.

$HOTCOLD_MOVES: moves during generation (10,000: some minutes), and 100 for a hypothesis example.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.formats import Mixed
from support.models import TinyLlama, random_tensors, write_llama

from hotcold.native.errors import BudgetError, ConfigError
from hotcold.policies.placement.random import Random
from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.moving import BURST_S, Mover, cannot_move, own_memory
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.plan.moved import owners_after, with_owners

MOVES = int(os.environ.get("HOTCOLD_MOVES", "400"))
AT_ONCE = 20
IDS = [1, 50, 60, 70]
GATE_FIRST: dict[str, Any] = {
    "predictor": "exact",
    "settings": {"predictor.by": "executors"},
}
KINDS: dict[str, dict[str, Any]] = {
    "learned": {},
    "int8": {"policy": Mixed("int8", "int8")},
    "gate-first": GATE_FIRST,
    "read ahead": {"schedule": "lookahead"},
    "private": {"store": "private"},
}


class Placed:
    """A policy's placement with some neurons elsewhere."""

    def __init__(self, policy: Any, moves: Any) -> None:
        self._policy, self._moves = policy, moves

    def place(self, problem: Any) -> Any:
        """As the policy does, but for these."""
        made = self._policy.place(problem)
        device_LN = made.device_LN.copy()
        for layer, neuron, device in self._moves:
            device_LN[layer, neuron] = device
        dtype_LN = made.dtype_LN.copy()
        for device in (0, 1):
            dtype_LN[device_LN == device] = made.dtype_LN[made.device_LN == device][0]
        return replace(made, device_LN=device_LN, dtype_LN=dtype_LN)


def deployed(policy: Any, **options: Any) -> Deployment:
    prepared = prepare_model(EngineConfig(policy=policy, **{"vram": "60MiB", **options}))
    return deploy(prepared, solve(prepared))


def tokens(local: LocalSession, count: int = 60) -> list[int]:
    sampling = Sampling(max_tokens=count, ignore_eos=True)
    return [id_ for id_, _ in local.sample(IDS, sampling)]


def now_LN(local: LocalSession) -> Any:
    return local.leader.deployment.plan.device_LN


def drawn(rng: np.random.Generator, device_LN: Any, count: int) -> list[tuple[int, int, int]]:
    """Moves of so many neurons to the other device."""
    places = rng.choice(device_LN.size, count, replace=False)
    layers, neurons = np.divmod(places, device_LN.shape[1])
    others = 1 - device_LN[layers, neurons]
    return list(zip(layers.tolist(), neurons.tolist(), others.tolist(), strict=True))


def check_executors(local: LocalSession, expected_LN: Any) -> None:
    """Lists, tables and slots are those of the owners."""
    assert np.array_equal(local.leader.deployment.plan.device_LN, expected_LN)
    plan = local.deployment.plan
    used: dict[int, list[int]] = {0: [], 1: []}
    for executor in local.executors.values():
        device, records = executor.member.index, executor._records
        for layer in range(len(expected_LN)) if device >= 0 else ():
            ids = np.flatnonzero(expected_LN[layer] == device)
            assert executor.native.owned(layer).tolist() == ids.tolist()
            if records is not None and records.has(layer):
                slots = records.slots(layer)
                assert np.flatnonzero(slots >= 0).tolist() == ids.tolist()
                used[device] += slots[ids].tolist()
                spare = plan.shape[0] * plan.shape[1] - int((expected_LN == device).sum())
                assert records.free(layer) <= spare
    assert all(len(slots) == len(set(slots)) for slots in used.values())


@pytest.mark.parametrize("kind", list(KINDS))
def test_moves_during_generation_change_no_token(kind: str) -> None:
    rng = np.random.default_rng(5)
    with LocalSession(deployed(**{"policy": Mixed(), **KINDS[kind]})) as local:
        expected, found, moved = tokens(local), list[list[int]](), 0
        ended = threading.Event()

        def generate() -> None:
            while not ended.is_set():
                found.append(tokens(local))

        thread = threading.Thread(target=generate)
        thread.start()
        try:
            while moved < MOVES or not found:
                moved += local.move(drawn(rng, now_LN(local), AT_ONCE)).neurons
        finally:
            ended.set()
            thread.join()
        assert found == [expected] * len(found)
        assert local.leader.ownership == (moved // AT_ONCE, moved)
        check_executors(local, now_LN(local))
        wholly = replace(local.leader.deployment, version=0, moved=0)
        after = tokens(local)
    with LocalSession(wholly) as fresh:
        assert tokens(fresh) == after == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TinyLlama(d=88, layers=3, neurons=131, heads=4, kv_heads=2, dtype="float16", seed=4)
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", model)


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Iterator[LocalSession]:
    """Int8 on both devices: every neuron that moves needs a slot."""
    with LocalSession(deployed(Mixed("int8", "int8"), model=folder, vram="1GiB")) as local:
        yield local


def test_a_neuron_takes_the_format_of_its_new_device(folder: Path) -> None:
    options = {"model": folder, "vram": "1GiB", **GATE_FIRST}
    with LocalSession(deployed(Mixed("int8"), **options)) as local:
        rng, before = np.random.default_rng(1), local.logits(IDS)[0]
        local.move(drawn(rng, now_LN(local), 90))
        local.move(drawn(rng, now_LN(local), 90))
        check_executors(local, now_LN(local))
        logits, to = local.logits(IDS)[0], local.leader.deployment
    with LocalSession(replace(to, version=0, moved=0)) as fresh:
        assert np.array_equal(fresh.logits(IDS)[0], logits)
    assert not np.array_equal(before, logits)


class Fails:
    """A device that refuses its n-th call, and has a use for all others."""

    def __init__(self, executor: Any, calls: int) -> None:
        self._executor, self._calls = executor, calls

    def take(self, places: Any) -> int:
        self._calls -= 1
        if self._calls == -1:
            raise BudgetError("no memory")
        return int(self._executor.take(places))

    def drop(self, places: Any) -> None:
        self._executor.drop(places)


def mover(local: LocalSession, takers: dict[int, Any] | None = None, **times: Any) -> Mover:
    executors = {one.member.index: one for one in local.executors.values()}
    owns = {device: executors[device] for device in own_memory(local.deployment)}
    leader = local.leader
    return Mover(
        leader._begun, leader.segment, leader.native.own, {**owns, **(takers or {})}, **times
    )


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_what_fails_half_way_is_undone(mixed: LocalSession, calls: int) -> None:
    before_LN, executors = (
        now_LN(mixed).copy(),
        {x.member.index: x for x in mixed.executors.values()},
    )
    free = [executors[device]._records.free(0) for device in (0, 1)]
    expected, (version, moved) = tokens(mixed, 20), mixed.leader.ownership
    made = mover(mixed, {1: Fails(executors[1], calls)})
    rate = 200_000  # a dozen neurons a version
    moves = drawn(np.random.default_rng(calls), before_LN, 120)
    with pytest.raises(BudgetError, match="no memory"):
        made.run(owners_after(mixed.leader.deployment.plan, moves), rate)
    assert np.array_equal(made.table.read(), before_LN)
    assert [executors[device]._records.free(0) for device in (0, 1)] == free
    assert (mixed.leader.ownership == (version, moved)) == (calls == 0)  # none was begun
    check_executors(mixed, before_LN)
    assert tokens(mixed, 20) == expected


def test_a_weight_that_a_format_cannot_hold_leaves_all_where_it_was(tmp_path: Path) -> None:
    model = TinyLlama(d=88, layers=3, neurons=131, heads=4, kv_heads=2, dtype="bfloat16", seed=4)
    tensors = random_tensors(model)
    tensors["model.layers.2.mlp.up_proj.weight"][40] = 1e8
    write_llama(tmp_path / "large", model, tensors)
    policy = Placed(Mixed("int8"), [(2, 40, 1)])
    with LocalSession(deployed(policy, model=tmp_path / "large", vram="1GiB")) as local:
        before_LN = now_LN(local).copy()
        moves = [(int(layer), int(n), 0) for layer, n in np.argwhere(before_LN == 1)]
        with pytest.raises(ConfigError, match="up rows of layer 2 of .* beyond int8's"):
            local.move(moves, rate=100_000)  # which comes to it last, many versions later
        assert local.leader.ownership[0] > 10
        check_executors(local, before_LN)
        moves.remove((2, 40, 0))
        assert local.move(moves).neurons == len(moves)
        check_executors(local, now_LN(local))


def test_no_room_is_said_by_name_and_changes_nothing(folder: Path) -> None:
    full = deployed(Mixed("int8"), model=folder, vram="1GiB")
    used = full.plan.bytes_by_device["gpu0"]
    size = full.plan.format_bytes["int8"]
    budgets = {**full.plan.budgets, "gpu0": used + 2 * size}
    with LocalSession(replace(full, plan=replace(full.plan, budgets=budgets))) as local:
        cold = np.argwhere(now_LN(local) == 1)[:3].tolist()
        hot = np.argwhere(now_LN(local) == 0)[:60].tolist()
        before_LN = now_LN(local).copy()
        with pytest.raises(BudgetError, match=f"on gpu0, {size} over its budget") as caught:
            local.move([(*place, "gpu0") for place in cold])
        assert caught.value.needed_bytes == used + 3 * size
        to_LN = owners_after(local.deployment.plan, [(*place, 0) for place in cold])
        with pytest.raises(BudgetError, match="no free slot on gpu0"):
            mover(local).run(to_LN)
        assert np.array_equal(mover(local).table.read(), before_LN)
        check_executors(local, before_LN)
        # As many as leave may come, though never more than two slots are free at once.
        cold = np.argwhere(now_LN(local) == 1)[:60].tolist()
        local.move([(*place, 0) for place in cold] + [(*place, 1) for place in hot])
        check_executors(local, now_LN(local))


@pytest.mark.parametrize(
    ("move", "said"),
    [
        ((8, 0, 0), "layer 8 is outside 0 to 2"),
        ((0, -1, 0), "neuron -1 is outside 0 to 130"),
        ((0, 0, 2), "device 2 is outside 0 to 1"),
        ((0, 0, "gpu7"), "the device one of gpu0, cpu0"),
        ((0, 0), "is no move"),
    ],
)
def test_a_move_that_cannot_be_is_named(mixed: LocalSession, move: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mixed.move([(1, 1, 0), move])
    assert said in str(caught.value)
    with pytest.raises(ConfigError, match="neuron 5 of layer 1 is moved twice"):
        mixed.move([(1, 5, 0), (1, 5, 1)])


def test_versions_keep_the_byte_rate(mixed: LocalSession) -> None:
    at, went, table = [0.0], list[tuple[float, int]](), mover(mixed).table
    rate, size = 40_000, mixed.deployment.plan.format_bytes["int8"]
    made = mover(
        mixed, clock=lambda: at[0], sleep=lambda seconds: at.__setitem__(0, at[0] + seconds)
    )
    own = made._own

    def count(version: int) -> None:
        own(version)
        went.append((at[0], table.moved * size))

    made._own, begin_LN, begun = count, now_LN(mixed).copy(), table.moved * size
    to_LN = owners_after(
        mixed.leader.deployment.plan, drawn(np.random.default_rng(0), begin_LN, 150)
    )
    moved = made.run(to_LN, rate)
    assert (moved.neurons, moved.bytes) == (150, 150 * size) and moved.versions > 20
    for seconds, total in went:
        assert total - begun <= rate * (seconds + BURST_S) + 2 * size
    assert went[-1][0] >= 150 * size / rate * 0.9
    made.run(begin_LN)
    check_executors(mixed, begin_LN)


def test_a_replan_moves_the_difference_alone() -> None:
    first, second = deployed(Random(seed=1)), deployed(Random(seed=2))
    different = int((first.plan.device_LN != second.plan.device_LN).sum())
    with LocalSession(second) as fresh:
        expected = tokens(fresh)
    with LocalSession(first) as local:
        tokens(local, 5)
        moved = local.replan(second)
        assert tokens(local) == expected
        assert moved.neurons == different < first.plan.device_LN.size
        assert moved.bytes == different * first.plan.neuron_bytes_L[0]
        assert local.leader.deployment.plan.hash == second.plan.hash
        check_executors(local, second.plan.device_LN)


def test_what_is_no_move_is_told_from_what_is(folder: Path) -> None:
    base = deployed(Mixed(), model=folder)
    device_LN = base.plan.device_LN.copy()
    device_LN[1] = 1
    assert cannot_move(base, base) is None
    emptied = replace(base, plan=with_owners(base.plan, device_LN))
    assert cannot_move(base, emptied) is None  # its steps stay
    apart = deployed(Mixed(), model=folder, schedule="paper")
    emptying = [(1, neuron, 1) for neuron in range(131)]
    without = deployed(Placed(Mixed(), emptying), model=folder)
    for to, said in (
        (without, "programs differ"),
        (apart, "schedule differs"),
        (replace(base, transport="ray"), "transport differs"),
        (replace(base, fetch_L=(0.5, 0, 0)), "fetches neurons"),
        (deployed(Mixed("int8"), model=folder), "programs differ"),
    ):
        assert said in str(cannot_move(base, to))
    one, other = ({"predictor": Placed(None, [seed])} for seed in (1, 2))
    assert cannot_move(replace(base, **one), replace(base, predictor=Placed(None, [1]))) is None
    assert "predictor differs" in str(cannot_move(replace(base, **one), replace(base, **other)))
    back = replace(without, plan=with_owners(without.plan, base.plan.device_LN))
    assert "layer 1 has no step on gpu0" in str(cannot_move(without, back))


ONE = st.tuples(st.just("move"), st.integers(0, 999), st.integers(1, 60))
FAIL = st.tuples(st.just("fail"), st.integers(0, 999), st.integers(0, 3))
PASSES = st.tuples(st.just("passes"), st.integers(1, 4), st.just(0))


@settings(
    max_examples=max(12, MOVES // 100),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.one_of(ONE, FAIL, PASSES), min_size=1, max_size=8))
def test_any_sequence_ends_where_a_model_of_it_does(
    mixed: LocalSession, does: list[tuple[str, int, int]]
) -> None:
    model_LN = now_LN(mixed).copy()
    for what, seed, count in does:
        if what == "passes":
            assert len(tokens(mixed, seed)) == seed
            continue
        moves = drawn(np.random.default_rng(seed), model_LN, 40 if what == "fail" else count)
        if what == "move":
            assert mixed.move(moves).neurons == count
            for layer, neuron, device in moves:
                model_LN[layer, neuron] = device
            continue
        executors = {one.member.index: one for one in mixed.executors.values()}
        failing = mover(mixed, {0: Fails(executors[0], count)})
        to_LN = owners_after(mixed.leader.deployment.plan, moves)
        try:
            failing.run(to_LN, 300_000)
        except BudgetError:
            pass
        else:  # it was over before
            mover(mixed).run(model_LN)
    check_executors(mixed, model_LN)
