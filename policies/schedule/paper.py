"""paper: the schedule of PowerInfer, an exchange in every layer.

The hybrid execution of the paper (arXiv 2312.12456, SOSP'24): hot and cold neurons are computed at
the same time, the sums are merged on the GPU, and every merge waits for the CPU executor. It
ignores that for many tokens none of a layer's cold neurons fires (`selective` uses that), and how
long either executor takes.
"""

from dataclasses import dataclass

from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, in_order


@dataclass(frozen=True)
class Paper:
    """Every node on its usual lane, every exchange awaited."""

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer, synchronising always."""
        return in_order(dag, sync="always")
