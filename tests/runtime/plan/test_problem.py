import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import module_bytes, tiny_problem, tiny_spec

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.problem import Module, Problem


def reference_fill(problem: Problem, score_LN: Any, share: float) -> tuple[Any, dict[str, str]]:
    """fill, one item at a time, as its docstring reads."""
    order = ["norms", "attention", "head", "predictor", "kv"]
    left = problem.budgets["gpu0"]
    homes = {}
    for module in sorted(
        problem.modules, key=lambda m: (order.index(m.name.split(".")[0]), m.layer or 0)
    ):
        homes[module.name] = "gpu0" if module.bytes <= left else "cpu0"
        left -= module.bytes if homes[module.name] == "gpu0" else 0
    left = int(share * left)
    device_LN = np.ones(problem.shape, dtype=np.int8)
    layers, neurons = problem.shape
    ranked = sorted(
        (-score_LN[layer][n], layer, n) for layer in range(layers) for n in range(neurons)
    )
    for _, layer, neuron in ranked:
        if problem.neuron_bytes_L[layer] <= left:
            left -= problem.neuron_bytes_L[layer]
            device_LN[layer, neuron] = 0
    return device_LN, homes


@st.composite
def problems(draw: st.DrawFn) -> tuple[Problem, Any, float]:
    layers, neurons = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    sizes = draw(st.lists(st.integers(1, 500), min_size=layers, max_size=layers))
    predictors = draw(st.lists(st.sampled_from([0, 100]), min_size=layers, max_size=layers))
    base = tiny_problem(layers, neurons, predictor_bytes_L=predictors)
    total = module_bytes(base) + neurons * sum(sizes)
    gpu = draw(st.integers(0, total + 100))
    scores = st.lists(st.integers(0, 3), min_size=neurons, max_size=neurons)  # many ties
    score_LN = np.array(draw(st.lists(scores, min_size=layers, max_size=layers)), dtype=float)
    share = draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    problem = replace(base, neuron_bytes_L=np.array(sizes), budgets={"gpu0": gpu, "cpu0": total})
    return problem, score_LN, share


@settings(max_examples=200, deadline=None)
@given(problems())
def test_fill_is_the_one_by_one_rule_and_always_valid(case: tuple[Problem, Any, float]) -> None:
    problem, score_LN, share = case
    placement = problem.fill(score_LN, share=share)
    device_LN, homes = reference_fill(problem, score_LN, share)
    np.testing.assert_array_equal(placement.device_LN, device_LN)
    assert placement.modules == homes
    check_placement(problem, placement, "fill")


def test_ties_go_by_layer_then_id() -> None:
    problem = tiny_problem(2, 4)
    problem = replace(problem, budgets={**problem.budgets, "gpu0": module_bytes(problem) + 5 * 192})
    owners = problem.fill(np.zeros((2, 4))).device_LN
    np.testing.assert_array_equal(owners, [[0, 0, 0, 0], [0, 1, 1, 1]])


def test_what_fits_to_the_byte_is_placed() -> None:
    problem = tiny_problem()
    need = module_bytes(problem)
    for gpu, on_gpu in ((need, 8), (need - 1, 7)):
        exact = replace(problem, budgets={**problem.budgets, "gpu0": gpu})
        homes = list(exact.fill(np.zeros((3, 40))).modules.values())
        assert homes.count("gpu0") == on_gpu


def test_infinite_scores_come_first_and_last() -> None:
    problem = tiny_problem(1, 4)
    problem = replace(problem, budgets={**problem.budgets, "gpu0": module_bytes(problem) + 192})
    owners = problem.fill(np.array([[1.0, -np.inf, np.inf, 1e308]])).device_LN
    np.testing.assert_array_equal(owners, [[1, 1, 0, 1]])


def test_modules_that_must_share_a_device_move_together() -> None:
    problem = tiny_problem(1, 1)
    modules = (
        Module("norms", None, 10),
        Module("head", None, 50, "tie"),
        Module("kv.0", 0, 50, "tie"),
    )
    problem = replace(problem, modules=modules, budgets={"gpu0": 90, "cpu0": 10_000})
    homes = problem.fill([[0.0]]).modules
    assert homes == {"norms": "gpu0", "head": "cpu0", "kv.0": "cpu0"}


def test_filling_the_host_puts_everything_there() -> None:
    placement = tiny_problem().fill(np.zeros((3, 40)), device="cpu0")
    assert (placement.device_LN == 1).all() and set(placement.modules.values()) == {"cpu0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_LN": np.full((3, 40), np.nan)}, "120 NaN"),
        ({"score_LN": np.zeros((3, 4))}, r"\(3, 4\).*\(3, 40\)"),
        ({"score_LN": np.zeros((3, 40), dtype=object)}, "object"),
        ({"score_LN": np.zeros((3, 40), dtype=complex)}, "complex"),
        ({"score_LN": np.zeros((3, 40)), "share": 1.1}, "share is 1.1"),
        ({"score_LN": np.zeros((3, 40)), "share": float("nan")}, "share is nan"),
        ({"score_LN": np.zeros((3, 40)), "device": "gpu7"}, "gpu7.*gpu0, cpu0"),
    ],
)
def test_fill_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        tiny_problem().fill(**arguments)


def test_problem_is_frozen_and_survives_pickle_and_copy() -> None:
    source = np.full((3, 40), 0.5)
    problem = tiny_problem(activations_LN=source)
    source[:] = 0.1
    assert (problem.activations_LN == 0.5).all()
    for other in (problem, copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        np.testing.assert_array_equal(other.activations_LN, problem.activations_LN)
        assert other.budgets == problem.budgets and other.modules == problem.modules
        with pytest.raises(ValueError, match="read-only"):
            other.activations_LN[0, 0] = 1.0
        with pytest.raises(TypeError):
            other.budgets["gpu0"] = 1  # type: ignore[index]


def test_bytes_of_the_modules() -> None:
    spec = tiny_spec(layers=2, tied=False, dtype="float16")
    problem = tiny_problem(2, 40, spec=spec, predictor_bytes_L=[0, 70], context=10, batch=3)
    sizes = {module.name: module.bytes for module in problem.modules}
    attention = (16 * (16 + 2 * 8) + 16 * 16) * 2
    assert sizes == {
        "norms": 5 * 16 * 4,
        "attention.0": attention,
        "attention.1": attention,
        "head": 2 * 50 * 16 * 2,
        "predictor.1": 70,
        "kv.0": 2 * 30 * 8 * 4,
        "kv.1": 2 * 30 * 8 * 4,
    }
    assert problem.budgets["cpu0"] == sum(sizes.values()) + 2 * 40 * 192
    assert problem.budgets["gpu0"] == sum(sizes.values()) + 40 * 192


def test_without_a_budget_both_executors_share_the_neurons() -> None:
    placement = tiny_problem(vram=None).fill(np.zeros((3, 40)))
    assert set(placement.modules.values()) == {"gpu0"}
    assert (placement.device_LN == 0).sum() == 60


def test_without_a_profile_all_neurons_are_alike() -> None:
    problem = tiny_problem(profiled=False)
    assert not problem.profiled and (problem.activations_LN == 1).all()
    assert (problem.predictor_density_L == 1).all()
    assert tiny_problem().profiled


@pytest.mark.parametrize(
    "change",
    [
        {"activations_LN": np.zeros((3, 41))},
        {"activations_LN": np.full((3, 40), 1.5)},
        {"activations_LN": np.full((3, 40), np.nan)},
        {"predictor_bytes_L": [1]},
        {"predictor_bytes_L": [-1, 0, 0]},
        {"predictor_density_L": [0.5]},
        {"predictor_density_L": [0.5, 2.0, 0.1]},
        {"context": 0},
        {"batch": 0},
        {"record_bytes": 0},
        {"vram": -1},
    ],
)
def test_make_problem_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        tiny_problem(**change)
