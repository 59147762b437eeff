import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from support.problems import tiny_plan, tiny_problem, tiny_spec

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.policies.placement.greedy import Greedy
from hotcold.policies.schedule.paper import Paper
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import build_dag
from hotcold.runtime.plan.schedule import in_order
from hotcold.runtime.plugins.run import make_schedule, place, policy_name

HARDWARE = HardwareProfile.unmeasured()


@dataclass
class Here:
    """Records the process it ran in."""

    pid: int = 0

    def place(self, problem: Any) -> Any:
        self.pid = os.getpid()
        return problem.fill(problem.activations_LN)


class Raises:
    def place(self, problem: Any) -> Any:
        raise SystemExit("boom")

    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        raise RuntimeError("boom")


def test_an_object_runs_here_and_a_name_elsewhere() -> None:
    here = Here()
    one = place(here, tiny_problem())
    assert here.pid == os.getpid()
    other = place("greedy", tiny_problem(), {"share": 1})
    np.testing.assert_array_equal(one.device_LN, other.device_LN)
    assert place(Greedy, tiny_problem(), {"share": "0"}).device_LN.all()


def test_an_object_cannot_raise_its_own_budget() -> None:
    class Greedier:
        def place(self, problem: Any) -> Any:
            object.__setattr__(problem, "budgets", {"gpu0": 2**40, "cpu0": 2**40})
            return problem.fill(problem.activations_LN)

    problem = tiny_problem()
    with pytest.raises(PolicyError, match="'Greedier' puts .* over its budget"):
        place(Greedier(), problem)


def test_names() -> None:
    assert [policy_name(p) for p in ("a.py:B", Greedy(), Greedy)] == ["a.py:B", "Greedy", "Greedy"]


def test_objects_are_blamed_like_files() -> None:
    with pytest.raises(
        PolicyError, match=r"policy 'Raises': test_run.py:\d+: SystemExit: boom"
    ) as e:
        place(Raises(), tiny_problem())
    assert isinstance(e.value.__cause__, SystemExit)
    with pytest.raises(PolicyError, match="'object' is not a placement policy"):
        place(object(), tiny_problem())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes no settings"):
        place(Here(), tiny_problem(), {"pid": 1})


def graph() -> tuple[Any, Any]:
    plan = tiny_plan(np.array([[0, 1], [0, 0]], dtype=np.int8))
    return build_dag(tiny_spec(2, 2), plan, True), plan


def test_built_in_schedules() -> None:
    dag, plan = graph()
    paper = make_schedule("paper", dag, plan, HARDWARE)
    selective = make_schedule("selective", dag, plan, HARDWARE)
    assert paper.sync == ("always", "always") and selective.sync == ("selective", "always")
    assert paper == make_schedule(Paper(), dag, plan, HARDWARE)
    assert replace(selective, sync=paper.sync) == paper


def test_schedules_are_checked_and_blamed() -> None:
    dag, plan = graph()

    class Backwards:
        def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
            plain = in_order(dag)
            return replace(plain, order={lane: ids[::-1] for lane, ids in plain.order.items()})

    with pytest.raises(PolicyError, match="policy 'Backwards' runs .* before .* on lane"):
        make_schedule(Backwards(), dag, plan, HARDWARE)
    with pytest.raises(PolicyError, match=r"test_run.py:\d+: RuntimeError: boom"):
        make_schedule(Raises(), dag, plan, HARDWARE)
    with pytest.raises(PolicyError, match="no schedule policy named 'greedy'"):
        make_schedule("greedy", dag, plan, HARDWARE)
