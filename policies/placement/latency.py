"""latency: the placement with the least predicted time per token.

Ours. The paper's program maximises how often the GPU's neurons fire. A user waits for the sum over
the layers of max(GPU, CPU) + exchange, and that is what this policy minimises, by the cost model of
runtime/plan/cost.py. There are two differences. Once both executors of a layer take equally long,
one more hot neuron costs time instead of saving it, so its memory goes to another layer. And a
layer that is nearly complete on one side is completed, because then it needs no exchange.

Modules come first as everywhere, but head and KV cache are also tried in host memory: a token reads
only part of them, so hot neurons may be worth more.

It ignores what the cost model ignores (the list is there), and it moves all modules of a kind or
none.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from hotcold.policies.placement.ilp import Ilp
from hotcold.policies.solvers.curves import LayerCurve, share_memory
from hotcold.policies.solvers.prefixes import I64, hottest_first
from hotcold.runtime.plan.cost import CostModel
from hotcold.runtime.plan.problem import Placement, Problem

_MOVABLE = ("head", "kv")


@dataclass(frozen=True)
class Latency:
    """Least predicted seconds a token.

    Args:
        selective: count on a schedule that skips the exchange where no cold neuron is active.
        move_modules: also try head and KV cache in host memory.
    """

    selective: bool = True
    move_modules: bool = True

    def place(self, problem: Problem) -> Placement:
        """Minimise; figures hold objective and bound in seconds a token, and their gap."""
        cost = CostModel(problem, self.selective)
        order_LN = hottest_first(problem)
        curves = [LayerCurve.of(cost, layer, order) for layer, order in enumerate(order_LN)]
        # Also try the paper's two placements: rounding in the curves must never make it lose to
        # them.
        rivals = [Ilp(communication=on).place(problem) for on in (False, True)]
        found = [(cost.token(r.device_LN, r.modules).total_s, r) for r in rivals]
        bound_s = np.inf
        for modules, room in self._homes(problem):
            count_L, layers_s = share_memory(curves, problem.neuron_bytes_L, room)
            dense_L, rest_s = cost.dense(modules)
            bound_s = min(bound_s, layers_s + rest_s + float(dense_L.sum()))
            hot_LN = _hot(curves, order_LN, count_L)
            placement = Placement(problem.divide(hot_LN, modules), modules)
            found.append((cost.token(placement.device_LN, modules).total_s, placement))
        best_s = min(seconds for seconds, _ in found)
        # The last of equals: the earlier ones may use memory that saves no time.
        best = [placement for seconds, placement in found if seconds == best_s][-1]
        bound_s = min(bound_s, best_s)
        gap = 1 - bound_s / best_s
        return Placement(
            best.device_LN,
            best.modules,
            note=f"{best_s * 1e3:.4g} ms a token predicted for {problem.hardware.name}; "
            f"gap {gap:.4%}",
            figures={"objective": best_s, "bound": bound_s, "gap": gap},
        )

    def _homes(self, problem: Problem) -> Iterator[tuple[dict[str, str], int]]:
        host = problem.devices[-1]
        seen: list[dict[str, str]] = []
        for keep in product((True, False), repeat=len(_MOVABLE)):
            stays = dict(zip(_MOVABLE, keep, strict=True))
            fixed = [module for module in problem.modules if module.must_share_device]
            if not all(keep) and (fixed or not self.move_modules):
                return
            allowed = [module for module in problem.modules if stays.get(module.kind, True)]
            homes, room = problem.homes(allowed)
            homes |= {module.name: host for module in problem.modules if module.name not in homes}
            if homes not in seen:
                seen.append(homes)
                yield homes, room


def _hot(curves: list[LayerCurve], order_LN: I64, count_L: I64) -> np.ndarray:
    hot_LN = np.zeros(order_LN.shape, np.bool_)
    for layer, (curve, count) in enumerate(zip(curves, count_L, strict=True)):
        hot_LN[layer, order_LN[layer, curve.pick(int(count))]] = True
    return hot_LN
