"""Conformance suites for authors of policies, to be called from their own pytest.

    from hotcold.policies import check_placement_policy
    def test_mine():
        check_placement_policy(Mine())

Each runs a dozen small cases that a policy will meet, in this process, and raises an AssertionError
that says which case failed and why. It does not judge how good a policy is. The suite for
predictors is in check_predictor.py.
"""

import copy
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import HotcoldError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.model.spec import DType, ModelSpec
from hotcold.runtime.plan.dag import Dag, build_dag
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.plan import Plan, make_plan
from hotcold.runtime.plan.problem import Placement, Problem, make_problem
from hotcold.runtime.plan.schedule import Schedule, check_schedule
from hotcold.runtime.plugins.registry import find, instantiate
from hotcold.runtime.topology import CLASSIC, Topology

_PATIENCE_S = 60.0  # the time limit of a policy given by name


def check_placement_policy(policy: Any) -> None:
    """Try a placement policy (object, class without settings, or name for --policy) on problems.

    Raises:
        AssertionError: the case that failed, and why.
    """
    subject: Any = subject_of("placement", policy)
    usual = _problem()
    first = _place(subject, usual, "an ordinary problem")
    before = first.device_LN.copy()
    again = _place(subject, usual, "the same problem again")
    require(_same(first, again), "two calls with the same problem returned different placements")
    require(
        not np.shares_memory(first.device_LN, again.device_LN)
        and bool((first.device_LN == before).all()),
        "a second call changed what the first returned; return a new array every time",
    )
    twin = _place(copy.deepcopy(subject), _problem(), "an equal problem, by a copy of the policy")
    require(_same(first, twin), "a copy of the policy placed an equal problem differently")
    for case, problem in _problem_cases().items():
        _place(subject, problem, case)
    started = time.monotonic()
    _place(subject, _problem(layers=16, neurons=8192), "131,072 neurons")
    took = time.monotonic() - started
    require(took < _PATIENCE_S, f"131,072 neurons took {took:.0f} s; the limit is 60 s")


def check_schedule_policy(policy: Any) -> None:
    """Try a schedule policy (object, class without settings, or name as for --schedule) on graphs.

    Raises:
        AssertionError: the case that failed, and why.
    """
    subject: Any = subject_of("schedule", policy)
    untouched = _graph_cases()
    for case, (plan, dag) in _graph_cases().items():
        first = _schedule(subject, dag, plan, case)
        again = _schedule(subject, dag, plan, case)
        require(first == again, f"{case}: two calls returned different schedules")
        twin = _schedule(copy.deepcopy(subject), dag, plan, case)
        require(first == twin, f"{case}: a copy of the policy returned another schedule")
        fresh_plan, fresh_dag = untouched[case]
        require(
            fresh_dag == dag and fresh_plan.hash == _rehash(plan),
            f"{case}: the policy changed the graph or the plan it was given",
        )


def subject_of(kind: Any, policy: object) -> object:
    """The plug-in to try; AssertionError where it cannot be constructed."""
    try:
        return instantiate(find(kind, policy), {})
    except HotcoldError as error:
        raise AssertionError(f"the policy cannot be constructed: {error}") from error


def require(condition: bool, message: str) -> None:
    """AssertionError with a message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def attempt(function: Callable[[], Any], case: str, noun: str = "policy") -> Any:
    """What a plug-in's method returns; AssertionError naming the case where it raises."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise AssertionError(f"{case}: the {noun} raised {text}") from error


def _place(policy: Any, problem: Problem, case: str) -> Placement:
    before = _digest(problem)
    placement: Placement = attempt(lambda: policy.place(problem), case)
    require(_digest(problem) == before, f"{case}: the policy changed the problem it was given")
    try:
        check_placement(problem, placement, type(policy).__name__)
    except HotcoldError as error:
        raise AssertionError(f"{case}: {error}") from error
    return placement


def _schedule(policy: Any, dag: Dag, plan: Plan, case: str) -> Schedule:
    hardware = HardwareProfile.unmeasured()
    schedule: Schedule = attempt(lambda: policy.schedule(dag, plan, hardware), case)
    try:
        check_schedule(dag, schedule, type(policy).__name__)
    except HotcoldError as error:
        raise AssertionError(f"{case}: {error}") from error
    return schedule


def _same(one: Placement, other: Placement) -> bool:
    names = ("device_LN", "dtype_LN")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return equal and dict(one.modules) == dict(other.modules)


def _digest(problem: Problem) -> dict[str, Any]:
    values = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    return {
        name: value.tobytes() if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def _rehash(plan: Plan) -> str:
    """The hash of what the plan holds now, not the one it remembers."""
    return dataclasses.replace(plan).hash


def small_spec(layers: int, neurons: int, dtype: DType = "float32") -> ModelSpec:
    """A Llama of width 32, with 4 heads and 2 of keys and values."""
    sizes = ("llama", layers, 32, neurons, 4, 2, 8, 64, 128)
    return ModelSpec(*sizes, norm_eps=1e-5, rope_theta=10000.0, tied=True, dtype=dtype)


def _problem(
    layers: int = 3,
    neurons: int = 96,
    vram: int | None = 60_000,
    activations_LN: NDArray[np.float64] | None = None,
    predictors: bool = False,
    topology: Topology = CLASSIC,
) -> Problem:
    """A problem with a skew like the paper's: a few neurons fire often, most hardly ever."""
    if activations_LN is None:
        rank_N = np.arange(1, neurons + 1)
        shuffle = np.random.default_rng(7)
        activations_LN = np.stack([shuffle.permutation(rank_N**-0.7) for _ in range(layers)])
    return make_problem(
        small_spec(layers, neurons),
        record_bytes=3 * 32 * 4,
        activations_LN=activations_LN,
        vram_bytes=vram,
        context=64,
        batch=1,
        predictor_bytes_L=[2048 if predictors else 0] * layers,
        predictor_density_L=None,
        hardware=HardwareProfile.unmeasured(),
        topology=topology,
    )


def _uneven() -> Problem:
    usual = _problem()
    sizes = np.array([384, 192, 768])
    total = int(sizes.sum()) * 96 + sum(module.bytes for module in usual.modules)
    budgets = {"gpu0": 60_000, "cpu0": total}
    return dataclasses.replace(usual, neuron_bytes_L=sizes, budgets=budgets)


def _problem_cases() -> dict[str, Problem]:
    everything = _problem().budgets["cpu0"]
    return {
        "no GPU memory at all": _problem(vram=0),
        "a single byte of GPU memory": _problem(vram=1),
        "GPU memory for the modules but not one neuron": _problem(vram=everything - 3 * 96 * 384),
        "one byte less than everything": _problem(vram=everything - 1),
        "exactly enough GPU memory": _problem(vram=everything),
        "a terabyte of GPU memory": _problem(vram=2**40),
        "no budget given": _problem(vram=None),
        "one layer of one neuron": _problem(layers=1, neurons=1, vram=None),
        "no neuron ever fires": _problem(activations_LN=np.zeros((3, 96))),
        "every neuron always fires": _problem(activations_LN=np.ones((3, 96))),
        "predictors that need memory": _problem(predictors=True),
        "layers whose neurons differ in size": _uneven(),
        "two CPU executors": _problem(topology=Topology(1, 2)),
        "two GPU executors": _problem(topology=Topology(2, 1)),
        "three GPU executors, two CPU executors": _problem(vram=25_000, topology=Topology(3, 2)),
        "two GPU executors without a budget": _problem(vram=None, topology=Topology(2, 2)),
    }


def _graph_cases() -> dict[str, tuple[Plan, Dag]]:
    half = np.zeros((3, 96), dtype=np.int8)
    half[:, ::2] = 1
    mixed = np.stack([np.zeros(96), np.ones(96), half[0]]).astype(np.int8)
    cases = {
        "hot and cold in every layer": half,
        "everything on the GPU": np.zeros((3, 96), dtype=np.int8),
        "every neuron on the CPU": np.ones((3, 96), dtype=np.int8),
        "layers that differ": mixed,
        "one layer of one neuron": np.zeros((1, 1), dtype=np.int8),
        "96 layers": np.tile(half, (32, 1)),
    }
    four = np.stack([np.arange(96) % 4, np.zeros(96), np.full(96, 3)]).astype(np.int8)
    given = {case: (device_LN, CLASSIC) for case, device_LN in cases.items()}
    given["two executors of each kind"] = four, Topology(2, 2)
    graphs = {}
    for case, (device_LN, topology) in given.items():
        layers, neurons = device_LN.shape
        problem = _problem(layers, neurons, vram=2**40, topology=topology)
        modules = {module.name: "gpu0" for module in problem.modules}
        plan = make_plan(problem, Placement(device_LN, modules), "check", "none")
        for predicts in (True, False):
            name = case if predicts else f"{case}, without a predictor"
            graphs[name] = (plan, build_dag(small_spec(layers, neurons), plan, predicts))
    return graphs
