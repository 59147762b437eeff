"""A placement policy: which neurons and modules the GPU holds.

Try it:

    hotcold solve --policy mine.py:Mine --vram 28MiB --out plan
    hotcold compare --policy mine.py:Mine --policy greedy --vram 28MiB --set share=0.9
"""

from dataclasses import dataclass

from hotcold.policies import Placement, Problem


@dataclass(frozen=True)
class Mine:
    """Hottest bytes first.

    Args:
        share: part of the memory left after the modules to use; --set share=0.9.
    """

    share: float = 1.0

    def place(self, problem: Problem) -> Placement:
        """Decide; the same problem must give the same placement.

        problem.activations_LN      firing probability by layer and neuron
        problem.neuron_bytes_L      bytes of one neuron of a layer
        problem.predictor_density_L share of a layer's neurons that the predictor proposes
        problem.modules             attention, KV cache, head...: name, layer, bytes
        problem.devices             of GPU executors, problem.gpus of them, then of CPU executors
        problem.budgets             bytes by device, problem.budgets["gpu0"]
        problem.hardware            rates of the machine, problem.hardware.sync_s
        """
        score_LN = problem.activations_LN / problem.neuron_bytes_L[:, None]
        return problem.fill(score_LN, share=self.share)
