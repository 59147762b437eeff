"""Solving the cases of `hotcold compare` before any of them is run.

Every placement and schedule is made, checked and rated by the cost model here, so that a policy
that cannot be used ends the command early.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from hotcold.actors.cli.common import output
from hotcold.actors.cli.compare.cases import Case
from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.runtime.limits import processors
from hotcold.runtime.options.config import DEFAULT_CONTEXT, EngineConfig

if TYPE_CHECKING:
    from hotcold.runtime.hardware.profile import HardwareProfile
    from hotcold.runtime.plan.cost import TokenTime
    from hotcold.runtime.plan.plan import Plan
    from hotcold.runtime.plan.problem import Placement, Problem
    from hotcold.runtime.plan.work import ModelWork
    from hotcold.runtime.plugins.registry import PluginKind
    from hotcold.runtime.plugins.run import MadeSchedule
    from hotcold.runtime.plugins.settings import Setting

STOP_S = 0.05
Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Solved:
    """A placement that is there already, in the place of the policy that made it."""

    placement: "Placement"

    def place(self, problem: "Problem") -> "Placement":
        """The placement, whatever the problem; the engine checks it like any other."""
        return self.placement


@dataclass(frozen=True)
class Ready:
    """A case that can be run, its placement and schedule as policies.

    Args:
        load: share of the expected activations that the GPU executor computes.
        predicted: the cost model's times, for `hardware`.
        on_gpu: whether it will run on a GPU here.
    """

    case: Case
    placement: Solved
    schedule: "MadeSchedule"
    plan: "Plan"
    load: float
    predicted: "TokenTime"
    hardware: "HardwareProfile"
    on_gpu: bool


def solve_all(options: EngineConfig, cases: Sequence[Case]) -> list[Ready]:
    """Place and schedule every case, each placement once, several at a time.

    Raises:
        PolicyError: a policy that cannot be used.
        HotcoldError: a model or option that cannot be used.
    """
    from hotcold.runtime.engine.deployment import deploy, solve
    from hotcold.runtime.engine.prepare import prepare_model, with_budget
    from hotcold.runtime.plugins.settings import split_settings

    settings = split_settings(options.settings)
    by_schedule = _own_settings("schedule", settings["schedule"], [c.schedule for c in cases])
    own = _own_settings("placement", settings["placement"], [case.policy for case in cases])
    # Schedules are made here; a setting that one of them lacks is no error.
    prepared = prepare_model(replace(options, settings=without_schedules(options.settings)))
    by_budget = {case.vram: prepared for case in cases}
    for vram in by_budget:
        if vram is not None:
            by_budget[vram] = with_budget(prepared, vram)

    def solved(key: "tuple[str | int | None, str]") -> "Plan":
        prepared = by_budget[key[0]]
        config = replace(prepared.config, settings=own[key[1]])
        return solve(replace(prepared, config=config), key[1])

    def ready(case: Case, plan: "Plan") -> Ready:
        prepared = by_budget[case.vram]
        one = _judged(
            *(prepared.problem, prepared.work, prepared.predicts, case),
            *(by_schedule[case.schedule], plan, options.policy_timeout, prepared.gpu is not None),
        )
        deploy(prepared, plan, one.schedule)  # refuses what could not run, before anything does
        return one

    return _each(cases, solved, ready)


def _each(
    cases: Sequence[Case],
    solved: "Callable[[tuple[str | int | None, str]], Result]",
    ready: Callable[[Case, Result], Ready],
) -> list[Ready]:
    """Every case solved, each placement once; those that nobody named may fail.

    `solved` makes the placement of a budget and a policy, `ready` puts a case together with it.

    Raises:
        HotcoldError: the first failure of a case that was named, or of all.
    """

    def attempt(key: "tuple[str | int | None, str]") -> "Result | HotcoldError":
        try:
            return solved(key)
        except HotcoldError as error:
            return error

    wanted = list(dict.fromkeys((case.vram, case.policy) for case in cases))
    made = dict(zip(wanted, _several(attempt, wanted), strict=True))
    done: list[Ready] = []
    for case in cases:
        try:
            plan = made[case.vram, case.policy]
            if isinstance(plan, HotcoldError):
                raise plan
            done.append(ready(case, plan))
        except HotcoldError as error:
            if case.named or (case is cases[-1] and not done):
                raise
            output.note(f"hotcold: {case.described} is left out: {error}")
    return done


def _judged(  # noqa: PLR0917 - everything a case is made of
    problem: "Problem",
    work: "ModelWork",
    predicts: bool,
    case: Case,
    settings: "Mapping[str, Setting]",
    plan: "Plan",
    timeout_s: float,
    on_gpu: bool = False,
) -> Ready:
    """A case with its schedule and what the cost model says of it."""
    from hotcold.runtime.plan.cost import predict_schedule
    from hotcold.runtime.plan.dag import build_dag
    from hotcold.runtime.plan.fetch import computed_plan
    from hotcold.runtime.plan.problem import Placement
    from hotcold.runtime.plugins.run import MadeSchedule, make_schedule

    dag = build_dag(work.spec, plan, predicts, work)
    made = make_schedule(case.schedule, dag, plan, problem.hardware, settings, timeout_s)
    return Ready(
        case,
        Solved(Placement(plan.device_LN, plan.modules)),
        MadeSchedule(case.schedule, made),
        plan,
        computed_plan(plan, made.fetch).gpu_activation_share,
        predict_schedule(problem, plan, made),
        problem.hardware,
        on_gpu,
    )


def solve_shape(shape: str, options: EngineConfig, cases: Sequence[Case]) -> list[Ready]:
    """The same for a published shape with synthetic statistics: nothing of it can be run.

    Raises:
        PolicyError: a policy that cannot be used.
        ConfigError: no such shape, or an option that cannot be used.
    """
    from hotcold.runtime.hardware.this_machine import chosen_hardware
    from hotcold.runtime.offline.plant.shaped import shaped_problem
    from hotcold.runtime.offline.plant.shapes import find_shape
    from hotcold.runtime.plan.plan import make_plan
    from hotcold.runtime.plan.work import ModelWork
    from hotcold.runtime.plugins.run import place
    from hotcold.runtime.plugins.settings import split_settings
    from hotcold.runtime.units import parse_bytes

    machine = chosen_hardware(options.hardware, options.threads)
    dtype = options.dtype or "float16"
    settings = split_settings(options.settings)
    by_schedule = _own_settings("schedule", settings["schedule"], [c.schedule for c in cases])
    own = _own_settings("placement", settings["placement"], [case.policy for case in cases])
    timeout_s = options.policy_timeout
    context = options.context or DEFAULT_CONTEXT
    work = ModelWork(find_shape(shape).spec(None, dtype))

    def solved(key: "tuple[str | int | None, str]") -> "tuple[Problem, Plan]":
        vram = None if key[0] is None else parse_bytes(key[0], "--vram")
        problem = shaped_problem(shape, vram, context, dtype, machine)
        placement = place(key[1], problem, own[key[1]], timeout_s)
        return problem, make_plan(problem, placement, key[1], f"shape {shape}")

    def ready(case: Case, made: "tuple[Problem, Plan]") -> Ready:
        problem, plan = made
        return _judged(problem, work, True, case, by_schedule[case.schedule], plan, timeout_s)

    return _each(cases, solved, ready)


def _several(call: Callable[[Key], Result], keys: Sequence[Key]) -> list[Result]:
    """Results in order; policies run in processes of their own, several at a time."""
    from hotcold.runtime.plugins.child import stop_children

    with ThreadPoolExecutor(min(8, processors().at_once)) as pool:
        futures = [pool.submit(call, key) for key in keys]
        try:
            return [future.result() for future in futures]
        except BaseException:  # Ctrl-C must not wait until a policy's time is up
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                stop_children()
                time.sleep(STOP_S)
            raise


def without_schedules(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings but for those of schedules."""
    return {key: value for key, value in settings.items() if not key.startswith("schedule.")}


def _own_settings(
    kind: "PluginKind", settings: "Mapping[str, Setting]", names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each policy those settings that it has; others are for the policies beside it.

    Files are imported in their own process only, never here: their policies get all settings.

    Raises:
        ConfigError: a setting that no policy has.
    """
    from hotcold.runtime.plugins.registry import BUILT_IN, find

    known: dict[str, set[str] | None] = dict.fromkeys(names)
    for name in BUILT_IN[kind]:
        if name in known:
            made = find(kind, name)
            known[name] = {f.name for f in fields(made)} if is_dataclass(made) else set()
    for key in settings:
        if not any(has is None or key in has for has in known.values()):
            raise ConfigError(f"--set {key}: no {kind} of {', '.join(known)} has such a setting")
    return {
        name: {key: value for key, value in settings.items() if has is None or key in has}
        for name, has in known.items()
    }
