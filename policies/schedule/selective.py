"""selective: the paper's selective synchronisation, an exchange only where cold neurons fired.

Described in the first version of the paper (arXiv 2312.12456v1) and neither in the second nor in
the released code. The active list says how many cold neurons a layer has for this token; if there
are none, the merge does not wait for the CPU executor. It ignores how long either executor takes:
where cold neurons fire, the wait is as long as in `paper`.
"""

from dataclasses import dataclass

from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, in_order


@dataclass(frozen=True)
class Selective:
    """Every node on its usual lane, exchanges skipped where no cold neuron is active."""

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer, synchronising where there is something to wait for."""
        return in_order(dag, sync="selective")
