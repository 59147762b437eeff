from pathlib import Path

import numpy as np
import pytest
from support.problems import tiny_problem

from hotcold.policies import check_placement_policy
from hotcold.policies.placement.all_cpu import AllCpu
from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.placement.random import Random

EXAMPLE = Path(__file__).parents[2] / "examples" / "02_own_policy.py"


def test_greedy_takes_the_hottest() -> None:
    problem = tiny_problem()
    placement = Greedy().place(problem)
    p_LN = problem.activations_LN
    assert p_LN[placement.device_LN == 0].min() >= p_LN[placement.device_LN == 1].max()
    assert (placement.device_LN == 0).sum() == 60
    assert (Greedy(share=0.5).place(problem).device_LN == 0).sum() == 30


def test_all_cpu_has_no_neuron_on_the_gpu() -> None:
    placement = AllCpu().place(tiny_problem())
    assert placement.device_LN.all() and set(placement.modules.values()) == {"gpu0"}


def test_random_depends_on_its_seed_alone() -> None:
    one, same, other = (Random(seed=seed).place(tiny_problem()).device_LN for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and (one == 0).sum() == (other == 0).sum() == 60


@pytest.mark.parametrize("name", [f"{EXAMPLE}:Mine"])
def test_the_example_conforms(name: str) -> None:
    check_placement_policy(name)
