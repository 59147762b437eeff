"""all-cpu: no neuron on the GPU: the baseline that shows what placing neurons is worth.

Modules still fill the GPU in their default order. It ignores the activation profile, and the memory
that is left.
"""

from dataclasses import dataclass

from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class AllCpu:
    """Every neuron on the CPU executor."""

    def place(self, problem: Problem) -> Placement:
        """Fill the GPU with modules only."""
        return problem.fill(problem.activations_LN, share=0.0)
