"""Neurons dealt to several devices of a kind: evenly, hottest first, and within the rooms."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import module_bytes, tiny_problem

from hotcold.runtime.plan.dealing import HOST, deal, dealing_order, fit
from hotcold.runtime.topology import Topology

ROOMS = st.lists(st.integers(0, 40), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(ROOMS, st.data())
def test_nobody_gets_more_than_its_share(shares: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(shares)))
    who = deal(count, shares)
    assert len(who) == count
    assert all((who == index).sum() <= share for index, share in enumerate(shares))


def test_every_run_is_mixed() -> None:
    who = deal(1000, [500, 300, 200])
    for begin in range(0, 900, 50):
        counts = np.bincount(who[begin : begin + 100], minlength=3)
        assert abs(counts - [50, 30, 20]).max() <= 2


@settings(max_examples=100, deadline=None)
@given(ROOMS, st.integers(0, 9), st.integers(0, 40))
def test_sizes_that_differ_stay_within_the_rooms(rooms: list[int], seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    bytes_K = random.integers(1, 9, count)
    who = fit(random.integers(0, len(rooms), count).astype(np.int8), bytes_K, rooms)
    for index, room in enumerate(rooms):
        assert bytes_K[who == index].sum() <= room
    if int(bytes_K.sum()) <= rooms[-1]:
        assert HOST not in who


def test_each_layer_is_dealt_hottest_first() -> None:
    p_LN = np.array([[0.1, 0.9, 0.5], [0.2, 0.2, 0.3]])
    assert dealing_order(p_LN).tolist() == [1, 2, 0, 5, 3, 4]


def test_devices_of_a_kind_share_its_neurons() -> None:
    size = 192  # bytes of a neuron
    modules = module_bytes(tiny_problem())
    budgets = [modules + 20 * size, 40 * size + 7]  # of 7 bytes nobody has a use
    problem = tiny_problem(vram=budgets, topology=Topology(2, 3))  # type: ignore[arg-type]
    placed = problem.fill(problem.activations_LN)
    counts = np.stack([np.bincount(row, minlength=5) for row in placed.device_LN])
    assert counts[:, :2].sum(axis=0).tolist() == [20, 40]
    assert abs(counts[:, 0] * 2 - counts[:, 1]).max() <= 3
    assert np.ptp(counts[:, 2:], axis=1).max() <= 1
    one = tiny_problem(vram=modules + 60 * size)
    whole = one.fill(one.activations_LN)
    np.testing.assert_array_equal(placed.device_LN < 2, whole.device_LN == 0)
    assert set(placed.modules.values()) == {"gpu0"}
