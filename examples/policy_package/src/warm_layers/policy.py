"""Two policies: a placement that favours busy layers, and a schedule that goes with it."""

from dataclasses import dataclass, replace

from hotcold.policies import Dag, HardwareProfile, Placement, Plan, Problem, Schedule, in_order


@dataclass(frozen=True)
class WarmLayers:
    """Hottest first, with a bonus for neurons of layers in which much fires.

    Args:
        bonus: 0 is greedy; 1 doubles the score of a layer with twice the mean activity.
    """

    bonus: float = 0.5

    def place(self, problem: Problem) -> Placement:
        """Fill the GPU by firing probability, weighted by layer."""
        activity_L = problem.activations_LN.mean(axis=1)
        mean = activity_L.mean()
        weight_L = (activity_L / mean) ** self.bonus if mean > 0 else activity_L + 1
        score_LN = problem.activations_LN * weight_L[:, None]
        return problem.fill(score_LN / problem.neuron_bytes_L[:, None])


@dataclass(frozen=True)
class LateSync:
    """Always synchronise in the first layers, selectively from there on.

    Args:
        first: layers that always synchronise.
    """

    first: int = 2

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer."""
        plain = in_order(dag, sync="selective")
        sync = ("always",) * min(self.first, dag.n_layers) + tuple(plain.sync[self.first :])
        return replace(plain, sync=sync)
