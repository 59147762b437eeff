"""What `hotcold compare` compares: cases, each a placement and a schedule under a budget.

Here they are named; solving.py solves them, comparison.py runs them. The ablation of the paper's
Figure 15 is a list of cases like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hotcold.runtime.errors import ConfigError

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
        policies: as typed; empty: the default ones, the first of them where schedules are what is
            compared, none beside an ablation.
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
        chosen = list(DEFAULT_POLICIES[: 1 if len(schedules) > 1 else None])
    plain = [
        Case(policy, schedule)
        for policy in dict.fromkeys(chosen)
        for schedule in (schedules or (DEFAULT_SCHEDULE,))
    ]
    steps = list(ABLATION) if ablation else []
    known = {(step.policy, step.schedule) for step in steps}
    cases = steps + [case for case in plain if (case.policy, case.schedule) not in known]
    return [replace(case, vram=vram) for vram in (budgets or (None,)) for case in cases]


def _expanded(policy: str) -> list[str]:
    from hotcold.policies.registry import BUILT_IN

    if policy != ALL:
        return [policy]
    return [name for name in BUILT_IN["placement"] if name not in NEEDS_A_SETTING]
