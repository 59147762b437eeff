import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from hotcold.policies import Placement, check_placement_policy, check_schedule_policy, in_order
from hotcold.runtime.plugins.registry import BUILT_IN


@pytest.mark.parametrize(
    "name", sorted(set(BUILT_IN["placement"]) - {"oracle", "powerinfer-index"})
)
def test_built_in_placements_conform(name: str) -> None:
    check_placement_policy(name)


@pytest.mark.parametrize("name", BUILT_IN["schedule"])
def test_built_in_schedules_conform(name: str) -> None:
    check_schedule_policy(name)


class Base:
    """A good policy that the cases below spoil, each in one way."""

    def place(self, problem: Any) -> Any:
        return self.spoil(problem, problem.fill(problem.activations_LN))

    def spoil(self, problem: Any, placement: Any) -> Any:
        return placement


class Silent(Base):
    def spoil(self, problem: Any, placement: Any) -> Any:
        return None


class Dice(Base):
    draw = np.random.default_rng()

    def place(self, problem: Any) -> Any:
        return problem.fill(self.draw.random(problem.shape))


@dataclass
class Memory(Base):
    """The second time it is asked, it answers otherwise."""

    calls: Any = field(default_factory=itertools.count)

    def place(self, problem: Any) -> Any:
        return problem.fill(problem.activations_LN, share=1.0 if next(self.calls) == 0 else 0.5)


@dataclass
class Reuses(Base):
    kept: Any = None

    def spoil(self, problem: Any, placement: Any) -> Any:
        if self.kept is None or self.kept.shape != problem.shape:
            self.kept = placement.device_LN
        self.kept[:] = placement.device_LN
        return Placement(self.kept, placement.modules)


class Mutates(Base):
    def spoil(self, problem: Any, placement: Any) -> Any:
        object.__setattr__(problem, "budgets", {**problem.budgets, "gpu0": 2**40})
        return placement


class IgnoresBudget(Base):
    def spoil(self, problem: Any, placement: Any) -> Any:
        return Placement(
            np.zeros(problem.shape, dtype=np.int8), {m.name: "gpu0" for m in problem.modules}
        )


class DividesByZero(Base):
    def place(self, problem: Any) -> Any:
        assert problem.activations_LN.sum() > 0, "nothing fires"
        return super().place(problem)


class AssumesEqualSizes(Base):
    def spoil(self, problem: Any, placement: Any) -> Any:
        sizes = dict.fromkeys((m.name for m in problem.modules), "cpu0")
        count = problem.budgets["gpu0"] // int(problem.neuron_bytes_L[0])
        device_LN = np.ones(problem.shape, dtype=np.int8)
        device_LN.reshape(-1)[::-1][:count] = 0
        return Placement(device_LN, sizes)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Silent(), "an ordinary problem: policy 'Silent' returned nothing"),
        (Dice(), "two calls with the same problem returned different placements"),
        (Memory(), "two calls with the same problem returned different placements"),
        (Reuses(), "return a new array every time"),
        (Mutates(), "changed the problem"),
        (IgnoresBudget(), "over its budget"),
        (DividesByZero(), "no neuron ever fires: the policy raised AssertionError: nothing fires"),
        (AssumesEqualSizes(), "neurons differ in size: .* over its budget"),
        (object(), "cannot be constructed: 'object' is not a placement policy"),
    ],
)
def test_faults_of_placement_policies_are_found(policy: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_placement_policy(policy)


class Plain:
    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        return in_order(dag)


class NeedsBoth:
    """Fails where a layer has no cold neurons."""

    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        plain = in_order(dag)
        return replace(plain, order={**plain.order, "cpu0": plain.order["cpu0"]})


class LooksTooFar:
    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        return replace(in_order(dag), lookahead=(1,) * dag.n_layers)


class NeedsLayers:
    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        return replace(in_order(dag), lookahead=(0, 1) + (1,) * (dag.n_layers - 2))


@dataclass
class Alternates:
    calls: Any = field(default_factory=itertools.count)

    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        return in_order(dag, sync="always" if next(self.calls) % 2 else "selective")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (NeedsBoth(), "everything on the GPU: the policy raised KeyError: 'cpu0'"),
        (LooksTooFar(), "lookahead 1 for layer 0"),
        (NeedsLayers(), "one layer of one neuron: .*entries of lookahead"),
        (Alternates(), "two calls returned different schedules"),
    ],
)
def test_faults_of_schedule_policies_are_found(policy: Any, message: str) -> None:
    check_schedule_policy(Plain())
    with pytest.raises(AssertionError, match=message):
        check_schedule_policy(policy)
