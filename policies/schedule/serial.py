"""serial: the two executors never compute at the same time.

A layer's cold neurons first, then its hot ones, then the merge: what PowerInfer's released code
does, because its concurrent executor is compiled out, and what llama.cpp does with a split layer.
The gain of `paper` over it is what the overlap is worth. It ignores which of the two would end
first. The graph of a GPU waits for the CPU executor at merges only, so on a GPU this schedule is
refused for layers that have neurons on both sides.
"""

from dataclasses import dataclass, replace

from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, in_order


@dataclass(frozen=True)
class Serial:
    """Every node on its usual lane; hot neurons wait for the cold ones of their layer."""

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer, one executor after the other, synchronising always."""
        both = [
            (cold, hot)
            for layer in range(dag.n_layers)
            for cold in dag.of("cold", layer)
            for hot in dag.of("hot", layer)
        ]
        return replace(in_order(dag, sync="always"), after=tuple(both))
