"""What `hotcold compare` compares: cases, each a placement and a schedule under a budget.

Here a case is named, solved and given its figures by the cost model; running it is
comparison.py's. The ablation of the paper's Figure 15 is a list of cases like any other.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hotcold.runtime.cli.options import EngineOptions
from hotcold.runtime.errors import ConfigError

if TYPE_CHECKING:
    from hotcold.runtime.cost import TokenTime
    from hotcold.runtime.deployment import Prepared
    from hotcold.runtime.hardware import HardwareProfile
    from hotcold.runtime.plan import Plan
    from hotcold.runtime.problem import Placement, Problem

DEFAULT_POLICIES = ("greedy", "random", "all-cpu")
DEFAULT_SCHEDULE = "selective"
ALL = "all"  # every built-in policy that needs no setting
NEEDS_A_SETTING = ("oracle",)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        policy: placement policy, as typed.
        schedule: schedule policy, as typed.
        vram: memory budget of the GPU executor; None: the default.
        step: its name in the ablation, "" outside of it.
    """

    policy: str
    schedule: str
    vram: str | int | None = None
    step: str = ""

    @property
    def label(self) -> str:
        """The case in a few words."""
        name = f"{self.policy}, {self.schedule}"
        return f"{self.step}: {name}" if self.step else name


# The steps of Figure 15, each on top of the one before, in what this engine can be asked for: the
# released engine's operators and predictors with whole layers on one side and no overlap; both
# executors at once, neurons drawn by lot; the solver's placement. The paper's first bar, llama.cpp
# itself, is `hotcold bench decode --rival llama.cpp`.
ABLATION = (
    Case("ffn-split", "serial", step="+PO"),
    Case("random", "paper", step="+Engine"),
    Case("ilp", "paper", step="+Policy"),
    Case("latency", "selective", step="ours"),
)


def make_cases(
    policies: Sequence[str], schedules: Sequence[str], budgets: Sequence[str], ablation: bool
) -> list[Case]:
    """Every policy with every schedule under every budget, the ablation's steps first.

    Args:
        policies: as typed; empty: the default ones, or none beside an ablation.
        schedules: as typed; empty: selective.
        budgets: as typed; empty: the default one.
        ablation: with the steps of Figure 15.

    Raises:
        ConfigError: one given twice.
    """
    for option, values in (("policy", policies), ("schedule", schedules), ("vram", budgets)):
        if len(set(values)) < len(values):
            raise ConfigError(
                f"--{option} names one {option} twice ({', '.join(values)}); give it once"
            )
    chosen = [name for policy in policies for name in _expanded(policy)]
    if not chosen and not ablation:
        chosen = list(DEFAULT_POLICIES)
    plain = [
        Case(policy, schedule)
        for policy in dict.fromkeys(chosen)
        for schedule in (schedules or (DEFAULT_SCHEDULE,))
    ]
    steps = list(ABLATION) if ablation else []
    known = {(step.policy, step.schedule) for step in steps}
    cases = steps + [case for case in plain if (case.policy, case.schedule) not in known]
    return [dataclasses.replace(case, vram=vram) for vram in (budgets or (None,)) for case in cases]


def _expanded(policy: str) -> list[str]:
    from hotcold.policies.registry import BUILT_IN

    if policy != ALL:
        return [policy]
    return [name for name in BUILT_IN["placement"] if name not in NEEDS_A_SETTING]


@dataclass(frozen=True)
class Solved:
    """A placement that is there already, in the place of the policy that made it."""

    placement: "Placement"

    def place(self, problem: "Problem") -> "Placement":
        """The placement, whatever the problem; the engine checks it like any other."""
        return self.placement


@dataclass(frozen=True)
class Ready:
    """A case that can be run.

    Args:
        case: which.
        placement: its placement, as a policy.
        schedule: its schedule policy, settings in it.
        plan: what the placement becomes.
        load: share of the expected activations that the GPU executor computes.
        predicted: the cost model's times.
        hardware: the machine they are for.
        on_gpu: whether it will run on a GPU here.
    """

    case: Case
    placement: Solved
    schedule: Any
    plan: "Plan"
    load: float
    predicted: "TokenTime"
    hardware: "HardwareProfile"
    on_gpu: bool


def solve_all(options: EngineOptions, cases: Sequence[Case]) -> list[Ready]:
    """Place and schedule every case, each placement once, several at a time.

    Raises:
        PolicyError: a policy that cannot be used.
        HotcoldError: a model or option that cannot be used.
    """
    from hotcold.runtime.config import EngineConfig
    from hotcold.runtime.deployment import prepare_model, solve, with_budget

    arguments = options.launch_arguments()
    arguments.pop("address", None)
    schedules = _schedules(options.settings, [case.schedule for case in cases])
    # A schedule's settings are in the objects; one that another schedule lacks is no error.
    arguments["settings"] = without_schedules(options.settings)
    prepared = prepare_model(EngineConfig(**arguments))
    by_budget = {case.vram: prepared for case in cases}
    for vram in by_budget:
        if vram is not None:
            by_budget[vram] = with_budget(prepared, vram)
    wanted = list(dict.fromkeys((case.vram, case.policy) for case in cases))
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        plans = dict(
            zip(wanted, pool.map(lambda key: solve(by_budget[key[0]], key[1]), wanted), strict=True)
        )
    return [
        _ready(by_budget[case.vram], case, schedules[case.schedule], plans[case.vram, case.policy])
        for case in cases
    ]


def _ready(prepared: "Prepared", case: Case, schedule: Any, plan: "Plan") -> Ready:
    from hotcold.policies.run import make_schedule
    from hotcold.runtime.cost import predict_schedule
    from hotcold.runtime.dag import build_dag
    from hotcold.runtime.deployment import deploy
    from hotcold.runtime.fetch import computed_plan
    from hotcold.runtime.problem import Placement

    deploy(prepared, plan, schedule)  # refuses what could not run, before anything does
    problem = prepared.problem
    dag = build_dag(prepared.bundle.spec, plan, prepared.predicts)
    made = make_schedule(schedule, dag, plan, problem.hardware)
    return Ready(
        case,
        Solved(Placement(plan.device_LN, plan.modules)),
        schedule,
        plan,
        computed_plan(plan, made.fetch).gpu_activation_share,
        predict_schedule(problem, plan, made),
        problem.hardware,
        prepared.gpu is not None,
    )


def without_schedules(settings: dict[str, str]) -> dict[str, str]:
    """Settings but for those of schedules."""
    return {key: value for key, value in settings.items() if not key.startswith("schedule.")}


def _schedules(settings: dict[str, str], names: Sequence[str]) -> dict[str, Any]:
    """Schedule policies by name, each with the settings it knows.

    Raises:
        PolicyError: no such schedule.
        ConfigError: a setting that none of them has, or that does not convert.
    """
    from hotcold.policies.registry import find, instantiate
    from hotcold.policies.settings import split_settings

    own = split_settings(settings)["schedule"]
    classes = {name: find("schedule", name) for name in dict.fromkeys(names)}
    known = {
        name: {f.name for f in dataclasses.fields(made)}
        if dataclasses.is_dataclass(made)
        else set()
        for name, made in classes.items()
    }
    lost = [key for key in own if not any(key in fields for fields in known.values())]
    if lost:
        raise ConfigError(
            f"--set schedule.{lost[0]}: none of {', '.join(classes)} has such a setting"
        )
    return {
        name: instantiate(made, {k: v for k, v in own.items() if k in known[name]}, name)
        for name, made in classes.items()
    }
