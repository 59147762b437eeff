"""greedy: the hottest bytes of the whole model on the GPU.

The knapsack heuristic that PowerInfer's solver (section 6.3 of the paper) improves on, and also
what its released solver computes, because that never switches the communication constraint on. It
ignores the cost of an exchange, so it may leave a layer with a handful of neurons on one side, and
it ignores the balance between the two executors within a layer.
"""

from dataclasses import dataclass

from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class Greedy:
    """Hottest bytes first, over all layers together.

    Args:
        share: part of the GPU memory left after the modules to fill with neurons, 0 to 1.
    """

    share: float = 1.0

    def place(self, problem: Problem) -> Placement:
        """Fill the GPU by firing probability per byte."""
        score_LN = problem.activations_LN / problem.neuron_bytes_L[:, None]
        return problem.fill(score_LN, share=self.share)
