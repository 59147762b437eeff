import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.problems import module_bytes, tiny_problem

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.placement.ilp import (
    Ilp,
    batched,
    least_neurons,
    neuron_items,
    solve,
)
from hotcold.policies.solvers.highs import highs_optimum
from hotcold.policies.solvers.prefixes import Items, hottest_first, relax
from hotcold.runtime.hardware.machine_file import load_hardware
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.offline.plant.shaped import shaped_problem
from hotcold.runtime.plan.plan import Plan, make_plan
from hotcold.runtime.plan.problem import Problem, fill_modules
from hotcold.runtime.plugins.run import place

RECORD = 192


def problem_with(
    activations_LN: np.ndarray, neurons_that_fit: float, least: int = 0, gpu: float = 100.0
) -> Problem:
    """A problem with room for so many neurons, whose C_l is `least`."""
    hardware = HardwareProfile.unmeasured()
    per_neuron_s = RECORD * (1e-9 / hardware.host_gb_per_s - 1e-9 / gpu)
    hardware = replace(hardware, gpu_gb_per_s=gpu, sync_s=max(least * per_neuron_s, 1e-15))
    layers, neurons = activations_LN.shape
    problem = tiny_problem(layers, neurons, activations_LN=activations_LN, hardware=hardware)
    gpu_bytes = module_bytes(problem) + int(neurons_that_fit * RECORD)
    return replace(problem, budgets={**problem.budgets, "gpu0": gpu_bytes})


def best_by_trying_every_subset(problem: Problem, least: int) -> float:
    """Equations 2 to 8 by brute force over every assignment of every neuron."""
    layers, neurons = problem.shape
    room = (problem.budgets["gpu0"] - module_bytes(problem)) // RECORD
    best = 0.0
    for bits in itertools.product((False, True), repeat=layers * neurons):
        hot_LN = np.array(bits).reshape(layers, neurons)
        count_L = hot_LN.sum(axis=1)
        if hot_LN.sum() <= room and all(count == 0 or count >= least for count in count_L):
            best = max(best, float(problem.activations_LN[hot_LN].sum()))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_it_equals_exhaustive_search(seed: int) -> None:
    draw = np.random.default_rng(seed)
    layers = int(draw.integers(1, 4))
    neurons = 12 // layers
    p_LN = draw.random((layers, neurons)) ** draw.integers(1, 4)
    least = int(draw.integers(1, neurons + 2))
    problem = problem_with(p_LN, float(draw.uniform(0, layers * neurons + 1)), least)
    np.testing.assert_array_equal(least_neurons(problem), min(least, neurons + 1))
    placement = Ilp().place(problem)
    expected = best_by_trying_every_subset(problem, least)
    assert placement.figures["objective"] == pytest.approx(expected, abs=1e-12)
    assert placement.figures["bound"] == pytest.approx(expected, abs=1e-9)
    count_L = (placement.device_LN == 0).sum(axis=1)
    assert all(count == 0 or count >= least for count in count_L)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("size", [(3, 40), (5, 1000)])
def test_it_equals_greedy_without_the_communication_constraint(
    seed: int, size: tuple[int, int]
) -> None:
    draw = np.random.default_rng(seed)
    p_LN = np.round(draw.random(size), 2)  # with ties
    problem = problem_with(p_LN, float(draw.uniform(0, p_LN.size + 1)), least=7)
    np.testing.assert_array_equal(
        Ilp(communication=False).place(problem).device_LN, Greedy().place(problem).device_LN
    )


def small_items(seed: int) -> Items:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(2, 7)), int(draw.integers(20, 120))
    problem = tiny_problem(*size, activations_LN=draw.random(size) ** draw.integers(1, 6))
    least_L = draw.integers(0, size[1], size=size[0])
    room = int(draw.integers(0, size[0] * size[1] * RECORD))
    return neuron_items(problem, hottest_first(problem), least_L, room)


@pytest.mark.parametrize("seed", range(5))
def test_highs_agrees(seed: int) -> None:
    pytest.importorskip("scipy", reason="scipy brings HiGHS: pip install 'hotcold[solver]'")
    items = small_items(seed)
    count_L, bound = solve(items, 64, 0.0)
    found = float(items.at(items.value_LK1, count_L).sum())
    assert highs_optimum(items) == pytest.approx(found, rel=1e-6, abs=1e-6)
    assert bound == pytest.approx(found, rel=1e-9)


def test_a_cross_check_of_a_large_problem_is_refused() -> None:
    pytest.importorskip("scipy", reason="scipy brings HiGHS: pip install 'hotcold[solver]'")
    problem = problem_with(np.random.default_rng(0).random((5, 1000)), 2000)
    with pytest.raises(PolicyError, match="up to 4000 binaries, this problem has 5005"):
        Ilp(check=True).place(problem)


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_of_batches_still_bounds_neurons(seed: int) -> None:
    items = small_items(seed)
    exact_L, bound = solve(items, 1, 0.0)
    free_L = np.full(len(exact_L), -1, np.int8)
    loose = relax(items, free_L)
    assert loose is not None and loose.bound >= bound * (1 - 1e-12)
    coarse = batched(items, 16)
    assert coarse.bytes_LK1[:, -1].tolist() == items.bytes_LK1[:, -1].tolist()
    used = items.at(items.bytes_LK1, exact_L).sum()
    assert used <= items.room


def test_a_gpu_no_faster_than_the_host_drops_the_constraint_and_says_so() -> None:
    problem = problem_with(np.random.default_rng(0).random((3, 40)), 50, least=10, gpu=20.0)
    placement = Ilp().place(problem)
    assert "no faster than the host" in placement.note
    np.testing.assert_array_equal(placement.device_LN, Greedy().place(problem).device_LN)


def test_room_for_less_than_any_layer_needs_is_no_gap() -> None:
    """Greedy would spread a few neurons over the layers; equation 5 allows none of them."""
    p_LN = np.random.default_rng(0).random((5, 1000))
    placement = Ilp().place(problem_with(p_LN, 40, least=50))
    assert (placement.device_LN != 0).all()
    assert placement.figures == {"objective": 0.0, "bound": 0.0, "gap": 0.0}


@pytest.mark.parametrize("settings", [{"batch": 0}, {"gap": -0.1}, {"gap": float("inf")}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Ilp(**settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def opt_175b() -> Problem:
    """OPT-175B in float16 where the constraint binds: a slow exchange, 20 GB for neurons."""
    hardware = replace(load_hardware("pc-high"), sync_s=1e-3)
    return shaped_problem("opt-175b", 140 * 10**9, hardware=hardware)


@pytest.fixture(scope="module")
def solved(opt_175b: Problem) -> Plan:
    """Through the child process, as the command does it."""
    return make_plan(opt_175b, place("ilp", opt_175b), "ilp", "shape")


def test_175b_is_solved_to_a_small_gap_where_the_constraint_binds(
    opt_175b: Problem, solved: Plan
) -> None:
    assert opt_175b.shape == (96, 49152)
    greedy = Greedy().place(opt_175b)
    unconstrained = float(opt_175b.activations_LN[greedy.device_LN == 0].sum())
    assert solved.figures["objective"] < unconstrained * (1 - 0.003)
    assert 0 <= solved.figures["gap"] <= 1e-3
    least_L = least_neurons(opt_175b)
    assert least_L is not None and (least_L > 1000).all()
    count_L = (solved.device_LN == 0).sum(axis=1)
    assert ((count_L == 0) | (count_L >= least_L)).all() and (count_L == least_L).any()


def test_figures_agree_with_the_saved_plan(opt_175b: Problem, solved: Plan, tmp_path: Path) -> None:
    solved.save(tmp_path)
    plan = Plan.load(tmp_path)
    assert plan.figures == solved.figures and plan.hash == solved.hash
    objective = float(plan.activations_LN[plan.device_LN == 0].sum())
    assert plan.figures["objective"] == pytest.approx(objective, rel=1e-9)
    on_gpu = sum(
        plan.module_bytes[name] for name, home in plan.modules.items() if home == "gpu0"
    ) + int((plan.device_LN == 0).sum(axis=1) @ plan.neuron_bytes_L)
    assert on_gpu == plan.bytes_by_device["gpu0"] <= plan.budgets["gpu0"]
    # The dual bound again, from what was saved, at any price: weak duality.
    _, room = fill_modules(opt_175b.modules, plan.budgets["gpu0"], "gpu0", "cpu0")
    least_L = least_neurons(opt_175b)
    assert least_L is not None
    sorted_LN = -np.sort(-plan.activations_LN, axis=1)
    size, prices = int(plan.neuron_bytes_L[0]), []
    for price in np.quantile(plan.activations_LN, [0.8, 0.85, 0.9, 0.95]) / size:
        count_L = np.maximum((sorted_LN > price * size).sum(axis=1), least_L)
        taken_LN = np.arange(plan.shape[1]) < count_L[:, None]
        gain_L = np.where(taken_LN, sorted_LN - price * size, 0).sum(axis=1)
        prices.append(price * room + np.maximum(gain_L, 0).sum())
    assert plan.figures["bound"] <= min(prices) * (1 + 1e-9)
    assert plan.figures["gap"] == pytest.approx(1 - objective / plan.figures["bound"], abs=1e-9)


def test_few_layers_are_solved_to_the_optimum_however_wide() -> None:
    draw = np.random.default_rng(3)
    p_LN = draw.random((6, 2000)) ** np.arange(1, 7)[:, None]
    for fit in (1700, 3500, 6000):
        placement = Ilp().place(problem_with(p_LN, fit, least=1600))
        count_L = (placement.device_LN == 0).sum(axis=1)
        assert ((count_L == 0) | (count_L >= 1600)).all() and count_L.sum() <= fit
        sorted_LN = -np.sort(-p_LN, axis=1)
        best = 0.0
        for open_L in itertools.product((False, True), repeat=6):
            if 1600 * sum(open_L) > fit or not any(open_L):
                continue
            rows_LN = sorted_LN[list(open_L)]
            rest = np.sort(rows_LN[:, 1600:].reshape(-1))[::-1][: fit - 1600 * sum(open_L)]
            best = max(best, float(rows_LN[:, :1600].sum() + rest.sum()))
        assert placement.figures["objective"] == pytest.approx(best, rel=1e-9)
        assert placement.figures["gap"] < 1e-12
        assert ", which would need at least 1,600" in placement.note
    placement = Ilp().place(problem_with(p_LN, 6000, least=2001))
    assert not (placement.device_LN == 0).any()
    assert placement.note.startswith(
        "6 layers without a neuron on the GPU, which would need more than all 2,"
    )
