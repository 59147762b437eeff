"""A placement policy of your own in one file.

Run it without installing anything (--set share=0.8 sets the field):

    hotcold compare --policy examples/02_own_policy.py:Mine --policy greedy --vram 28MiB
"""

from dataclasses import dataclass

from hotcold.policies import Placement, Problem


@dataclass(frozen=True)
class Mine:
    """Hottest bytes first."""

    share: float = 1.0  # --set share=0.8

    def place(self, problem: Problem) -> Placement:
        """Fill the GPU with what fires most for its size."""
        return problem.fill(
            problem.activations_LN / problem.neuron_bytes_L[:, None], share=self.share
        )
