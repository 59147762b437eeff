"""per-layer: every layer the same share of the GPU memory left after the modules.

Ours: the simplest way to give both executors work in every layer. It ignores that layers differ:
one in which hardly anything fires gets as much memory as the busiest.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.policies.solvers.prefixes import hottest_first, place_prefixes
from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class PerLayer:
    """The hottest neurons of each layer, the same bytes in all.

    Args:
        share: part of the GPU memory left after the modules to use, 0 to 1.

    Raises:
        ConfigError: a share out of range.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"policy 'per-layer': share is {self.share}; it must be from 0 to 1")

    def place(self, problem: Problem) -> Placement:
        """Give each layer its quota; what a quota cannot use is left empty."""
        modules, room = problem.homes()
        layers, neurons = problem.shape
        quota = int(self.share * room) // layers
        count_L = np.minimum(quota // problem.neuron_bytes_L, neurons)
        order_LN = hottest_first(problem)
        return Placement(place_prefixes(problem, order_LN, count_L, modules), modules)
