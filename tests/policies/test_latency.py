import itertools
from dataclasses import replace

import numpy as np
import pytest
from support.problems import module_bytes, tiny_problem

from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.placement.ilp import Ilp
from hotcold.policies.placement.latency import Latency
from hotcold.policies.solvers.curves import LayerCurve, share_memory
from hotcold.policies.solvers.prefixes import hottest_first
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.offline.plant.shaped import shaped_problem
from hotcold.runtime.plan.cost import CostModel, predict
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.problem import Placement, Problem

RECORD = 192


def random_problem(draw: np.random.Generator, layers: int, neurons: int) -> Problem:
    """Machines and statistics of every kind: fast and slow GPUs or none, dear exchanges, ..."""
    rates = [float(rate) for rate in 10 ** draw.uniform(0, 3, 3)]
    sync_s = float(10 ** draw.uniform(-9, -6))
    problem = tiny_problem(
        layers,
        neurons,
        activations_LN=draw.random((layers, neurons)) ** draw.integers(1, 5),
        hardware=HardwareProfile("drawn", False, *rates, 1e5, 1e5, sync_s),
        predictor_density_L=draw.random(layers),
    )
    modules = module_bytes(problem)
    gpu = int(draw.integers(modules // 2, modules + layers * neurons * RECORD + RECORD))
    hardware = replace(problem.hardware, has_gpu=gpu % 5 > 0)  # one in five shares its cores
    return replace(problem, budgets={**problem.budgets, "gpu0": gpu}, hardware=hardware)


def best_by_trying_every_subset(problem: Problem, modules: dict[str, str]) -> float:
    """The least predicted time of any neuron placement under these homes of the modules."""
    layers, neurons = problem.shape
    held = sum(m.bytes for m in problem.modules if modules[m.name] == "gpu0")
    room = (problem.budgets["gpu0"] - held) // RECORD
    cost, best = CostModel(problem), np.inf
    bits = np.array(list(itertools.product((0, 1), repeat=neurons)), np.int8)
    # Layers do not interact but through memory, so each layer's subsets are timed once.
    by_size = []
    for layer in range(layers):
        device_LN = np.ones((layers, neurons), np.int8)
        least = np.full(neurons + 1, np.inf)
        for row in bits:
            device_LN[layer] = row
            size = int((row == 0).sum())
            least[size] = min(least[size], cost.token(device_LN, modules).layers[layer].total_s)
        by_size.append(least)
    rest_s = cost.token(np.ones((layers, neurons), np.int8), modules).rest_s
    for sizes in itertools.product(range(neurons + 1), repeat=layers):
        if sum(sizes) <= room:
            total = sum(least[size] for least, size in zip(by_size, sizes, strict=True))
            best = min(best, total + rest_s)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_it_is_within_one_percent_of_exhaustive_search(seed: int) -> None:
    draw = np.random.default_rng(seed)
    problem = random_problem(draw, int(draw.integers(1, 4)), int(draw.integers(2, 7)))
    placement = Latency().place(problem)
    homes = [modules for modules, _ in Latency()._homes(problem)]
    best_s = min(best_by_trying_every_subset(problem, modules) for modules in homes)
    found_s = predict(problem, placement).total_s
    assert best_s * (1 - 1e-9) <= found_s <= best_s * 1.01
    assert placement.figures["bound"] <= best_s * (1 + 1e-9)
    assert placement.figures["objective"] == pytest.approx(found_s, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_layers_too_wide_for_every_subset_are_close_too(seed: int) -> None:
    draw = np.random.default_rng(100 + seed)
    problem = random_problem(draw, 1, 13)
    cost, order_LN = CostModel(problem), hottest_first(problem)
    curve = LayerCurve.of(cost, 0, order_LN[0])
    assert len(curve.load_N) == 13
    member_SN = (np.arange(2**13)[:, None] >> np.arange(13)) & 1
    all_S = np.array([curve.seconds(np.flatnonzero(row)) for row in member_SN])
    size_S = member_SN.sum(axis=1)
    best_C = np.array([all_S[size_S <= size].min() for size in range(14)])
    assert (curve.best_C <= best_C * 1.01).all()
    assert (curve.best_C >= best_C * (1 - 1e-9)).all()
    assert (curve.least_C <= best_C * (1 + 1e-9)).all()
    for count in range(14):
        picked = curve.pick(count)
        assert len(picked) <= count
        assert curve.seconds(picked) == pytest.approx(curve.best_C[count], rel=1e-9)


def test_it_never_loses_to_ilp_or_greedy_and_keeps_every_budget() -> None:
    draw = np.random.default_rng(6)
    for case in range(1000):
        widest = 40 if case % 20 == 0 else 8
        problem = random_problem(draw, int(draw.integers(1, 4)), int(draw.integers(1, widest)))
        placement = Latency().place(problem)
        check_placement(problem, placement, "latency")
        used = problem.bytes_by_device(placement.device_LN, placement.modules)
        assert all(used[device] <= problem.budgets[device] for device in used)
        ours_s = predict(problem, placement).total_s
        for rival in (Ilp(), Greedy()):
            assert ours_s <= predict(problem, rival.place(problem)).total_s * (1 + 1e-12)


def test_memory_by_price_is_close_to_memory_by_table(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(7)
    for _ in range(10):
        problem = random_problem(draw, 6, 200)
        cost, order_LN = CostModel(problem), hottest_first(problem)
        curves = [LayerCurve.of(cost, layer, order) for layer, order in enumerate(order_LN)]
        room = int(draw.integers(0, 1200)) * RECORD
        table_L, table_bound = share_memory(curves, problem.neuron_bytes_L, room)
        with monkeypatch.context() as patch:
            patch.setattr("hotcold.policies.solvers.curves._CELLS", 0)
            price_L, price_bound = share_memory(curves, problem.neuron_bytes_L, room)
        assert price_L.sum() * RECORD <= room

        def total(count_L: np.ndarray, curves: list[LayerCurve] = curves) -> float:
            return sum(float(c.best_C[n]) for c, n in zip(curves, count_L, strict=True))

        best = total(table_L)
        assert best <= total(price_L) * (1 + 1e-12) <= best * 1.05
        assert max(table_bound, price_bound) <= best * (1 + 1e-9)


def test_past_the_balance_memory_goes_elsewhere() -> None:
    """Two equal devices, room for everything: half of each layer is as fast as it gets."""
    p_LN = np.full((2, 40), 0.5)
    slow = replace(HardwareProfile.unmeasured(), sync_s=1e-12, at_once=True)
    problem = tiny_problem(2, 40, vram=2**30, activations_LN=p_LN, hardware=slow)
    placement = Latency().place(problem)
    assert (placement.device_LN == 0).sum(axis=1).tolist() == [20, 20]
    everything = Placement(np.zeros((2, 40), np.int8), placement.modules)
    assert predict(problem, placement).total_s < predict(problem, everything).total_s


def test_executors_that_share_their_cores_gain_nothing_by_sharing_a_layer() -> None:
    """One waits while the other reads: two halves take as long as the whole, and an exchange."""
    p_LN = np.full((2, 40), 0.5)
    shared = replace(HardwareProfile.unmeasured(), sync_s=1e-12)
    problem = tiny_problem(2, 40, vram=2**30, activations_LN=p_LN, hardware=shared)
    assert (Latency().place(problem).device_LN == 0).all()
    half_LN = np.arange(80, dtype=np.int8).reshape(2, 40) % 2
    halves = Placement(half_LN, Latency().place(problem).modules)
    apart = replace(problem, hardware=replace(shared, at_once=True))
    both, whole = predict(problem, halves), predict(problem, Latency().place(problem))
    assert both.total_s == pytest.approx(whole.total_s + 2 * shared.sync_s)
    saved_s = both.total_s - predict(apart, halves).total_s
    assert saved_s == pytest.approx(sum(layer.hot_s for layer in both.layers))


def test_a_dear_exchange_is_avoided() -> None:
    p_LN = np.full((2, 40), 0.5)
    dear = replace(HardwareProfile.unmeasured(), sync_s=1.0)
    problem = tiny_problem(2, 40, vram=2**30, activations_LN=p_LN, hardware=dear)
    assert (Latency().place(problem).device_LN == 0).all()


def test_it_scales_to_a_published_shape() -> None:
    problem = shaped_problem("opt-30b", 24 * 10**9)
    placement = Latency().place(problem)
    check_placement(problem, placement, "latency")
    assert 0 <= placement.figures["gap"] < 0.01
