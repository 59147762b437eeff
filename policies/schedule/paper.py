"""paper: the schedule of PowerInfer, an exchange in every layer.

Hot and cold neurons are computed at the same time and every merge waits for the CPU executor, also
where none of its neurons fired.
"""

from dataclasses import dataclass

from hotcold.runtime.dag import Dag
from hotcold.runtime.hardware import HardwareProfile
from hotcold.runtime.plan import Plan
from hotcold.runtime.schedule import Schedule, in_order


@dataclass(frozen=True)
class Paper:
    """Every node on its usual lane, every exchange awaited."""

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer, synchronising always."""
        return in_order(dag, sync="always")
