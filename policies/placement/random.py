"""random: randomly drawn neurons, as a baseline.

What the paper's ablation (Figure 15) calls "+Engine", before its solver places anything. It ignores
the activation profile: the gain of greedy over it is what the profile is worth.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class Random:
    """Fill the GPU with neurons drawn at random.

    Args:
        seed: of the draw, at least 0; the same seed, the same placement.
    """

    seed: int = 0

    def place(self, problem: Problem) -> Placement:
        """Fill the GPU by a random score."""
        return problem.fill(np.random.default_rng(self.seed).random(problem.shape))
