"""What `hotcold compare` compares: cases, each a placement and a schedule under a budget.

Cases are named here; solving.py solves them, runs.py runs them. The ablation of the paper's Figure
15 is a list of cases like any other.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from hotcold.actors.cli.common import output
from hotcold.native.errors import ConfigError
from hotcold.runtime.units import format_bytes, parse_bytes

DEFAULT_POLICIES = ("greedy", "random", "all-cpu")
DEFAULT_SCHEDULE = "selective"
ALL = "all"  # every built-in policy, but those whose setting was not given
NEEDS = {
    "oracle": ("masks", "a recording of the run: hotcold profile --bitmaps"),
    "powerinfer-index": ("file", "an index of PowerInfer's, .generated.gpuidx"),
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        policy, schedule: as typed.
        vram: memory budget of the GPU executor; None: the default.
        step: its name in the ablation, "" outside of it.
        named: whether its policy was asked for by name; one of `all` that fails is left out.
    """

    policy: str
    schedule: str
    vram: str | int | None = None
    step: str = ""
    named: bool = True

    @property
    def label(self) -> str:
        """The case in a few words."""
        name = f"{self.policy}, {self.schedule}"
        return f"{self.step}: {name}" if self.step else name

    @property
    def described(self) -> str:
        """The label and the budget."""
        return self.label if self.vram is None else f"{self.label}, {format_budget(self.vram)}"


def format_budget(vram: str | int | None) -> str:
    """A budget for people: as it was typed, or a size that was computed."""
    return format_bytes(vram) if isinstance(vram, int) else vram or "default budget"


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
    policies: Sequence[str],
    schedules: Sequence[str],
    budgets: Sequence[str],
    ablation: bool,
    settings: Collection[str] = (),
) -> list[Case]:
    """Every policy with every schedule under every budget, the steps of Figure 15 first.

    Args:
        policies: as typed; empty: the default ones, the first of them where schedules are what is
            compared, none beside an ablation.
        schedules: as typed; empty: selective.
        budgets: as typed; empty: the default one.
        ablation: with those steps.
        settings: names of those given; `all` leaves out policies that miss theirs, and says so.

    Raises:
        ConfigError: one given twice, or a budget that is no size.
    """
    for option, values in (("policy", policies), ("schedule", schedules), ("vram", budgets)):
        if len(set(values)) < len(values):
            raise ConfigError(
                f"--{option} names one {option} twice ({', '.join(values)}); give it once"
            )
    for budget in budgets:
        parse_bytes(budget, "--vram")
    chosen = [
        name
        for policy in policies
        for name in (_all_built_in(policies, settings) if policy == ALL else [policy])
    ]
    if not chosen and not ablation:
        chosen = list(DEFAULT_POLICIES[: 1 if len(schedules) > 1 else None])
    plain = [
        Case(policy, schedule, named=policy in policies or not policies)
        for policy in dict.fromkeys(chosen)
        for schedule in (schedules or (DEFAULT_SCHEDULE,))
    ]
    steps = list(ABLATION) if ablation else []
    known = {(step.policy, step.schedule) for step in steps}
    cases = steps + [case for case in plain if (case.policy, case.schedule) not in known]
    return [replace(case, vram=vram) for vram in (budgets or (None,)) for case in cases]


def _all_built_in(policies: Sequence[str], settings: Collection[str]) -> list[str]:
    """Every built-in placement policy that has what it needs; the others are told."""
    from hotcold.runtime.plugins.registry import BUILT_IN

    given = {name.rpartition(".")[2] for name in settings}
    missing = {
        name: needs
        for name, needs in NEEDS.items()
        if needs[0] not in given and name not in policies
    }
    for name, (setting, what) in missing.items():
        output.note(f"hotcold: {name} is left out: it needs --set {setting}=FILE, {what}")
    return [name for name in BUILT_IN["placement"] if name not in missing]
