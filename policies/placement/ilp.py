"""ilp: the PowerInfer paper's placement, solved to a proven gap.

Section 6.3 of the paper (arXiv 2312.12456, SOSP'24), equations 2 to 8, v the firing probability:

    max  sum over neurons on the GPU of v                                               (2)
    every neuron on one device, no device over its memory                               (3, 6)
    C_l * T_gpu + T_sync <= C_l * T_cpu,  T = bytes of a neuron / bandwidth             (4, 5)
    a layer has no neuron on the GPU, or at least C_l                                   (7, 8)

The paper hands batches of 64 neurons of similar impact to an ILP solver. Since all neurons of a
layer have the same size, an optimum takes a prefix of each layer, hottest first, so the only real
decision is which layers get any: prices and prefixes (prefixes.py) answer that with a bound, and
branching on the layers closes what is left. The batches only choose the layers of large models; the
neurons within them are then placed one by one, and the bound is the neurons', not the batches'.
Where few layers can have any, a table over memory (packing.py) chooses them and tightens the bound.

Modules come first, in the default order: the paper does not say how they share the GPU.

It ignores time: neither the balance of the two executors in a layer nor that they overlap is in
the objective. T counts a neuron as if it fired for every token; `sparse` corrects that.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.policies.solvers.packing import pack
from hotcold.policies.solvers.prefixes import (
    I64,
    Items,
    complete,
    hottest_first,
    place_prefixes,
    relax,
)
from hotcold.runtime.plan.problem import Placement, Problem

EXACT_BINARIES = 4000
_NODES_EXACT, _NODES_GAP = 4096, 4
_FEW_LAYERS, _NODES_FEW = 16, 256


@dataclass(frozen=True)
class Ilp:
    """The paper's integer program.

    Args:
        communication: with equations 4, 7 and 8; without them it is `greedy`.
        batch: neurons of similar impact that are chosen together, in models of more than 4,000
            neurons.
        sparse: count the time of a neuron as often as the layer's neurons fire on average, not for
            every token, which makes C_l larger.
        gap: relative distance to the bound at which to stop.
        check: also hand the problem to HiGHS (needs scipy), up to 4,000 binaries.

    Raises:
        ConfigError: a setting out of range.
    """

    communication: bool = True
    batch: int = 64
    sparse: bool = False
    gap: float = 1e-4
    check: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"policy 'ilp': batch is {self.batch}; it must be at least 1")
        if not 0 <= self.gap < 1:
            raise ConfigError(f"policy 'ilp': gap is {self.gap}; it must be from 0 to below 1")

    def place(self, problem: Problem) -> Placement:
        """Solve it; figures hold objective, bound and gap, in neurons fired on the GPU a token."""
        modules, room = problem.homes()
        least_L, remark = self._least(problem)
        order_LN = hottest_first(problem)
        items = neuron_items(problem, order_LN, least_L, room)
        count_L, bound = solve(items, self.batch, self.gap)
        objective = float(items.at(items.value_LK1, count_L).sum())
        bound = max(bound, objective)  # equal up to rounding
        if self.check:
            from hotcold.policies.solvers.highs import cross_check

            remark += cross_check(items, objective, bound)
        gap = (bound - objective) / bound if bound else 0.0
        return Placement(
            place_prefixes(problem, order_LN, count_L, modules),
            modules,
            note=f"{_closed(count_L, least_L, problem.shape[1])}; gap {gap:.4%}{remark}",
            figures={"objective": objective, "bound": bound, "gap": gap},
        )

    def _least(self, problem: Problem) -> tuple[I64, str]:
        none_L = np.zeros(problem.shape[0], np.int64)
        if not self.communication:
            return none_L, ""
        least_L = least_neurons(problem, self.sparse)
        if least_L is None:
            return none_L, "; the GPU is no faster than the host, so no number meets equation 4"
        return least_L, ""


def _closed(count_L: I64, least_L: I64, neurons: int) -> str:
    closed_L = (count_L == 0) & (least_L > 0)
    count = int(closed_L.sum())
    text = f"{count} {'layer' if count == 1 else 'layers'} without a neuron on the GPU"
    if not closed_L.any():
        return text
    least = int(least_L[closed_L].min())
    if least > neurons:
        return f"{text}, which would need more than all {neurons:,}"
    return f"{text}, which would need at least {least:,}"


def least_neurons(problem: Problem, sparse: bool = False) -> I64 | None:
    """C_l of equation 4 by layer, at most N + 1; None where the GPU is no faster than the host."""
    hardware = problem.hardware
    faster_s = 1e-9 / hardware.host_gb_per_s - 1e-9 / hardware.gpu_gb_per_s  # a byte
    if faster_s <= 0:
        return None
    saved_L = problem.neuron_bytes_L * faster_s
    if sparse:
        saved_L = saved_L * problem.activations_LN.mean(axis=1)
    most = problem.shape[1] + 1
    with np.errstate(divide="ignore"):
        least_L = np.minimum(np.ceil(hardware.sync_s / saved_L - 1e-9), most)
    whole_L: I64 = np.maximum(least_L, 1).astype(np.int64)
    return whole_L


def neuron_items(problem: Problem, order_LN: I64, least_L: I64, room: int) -> Items:
    """Every neuron an item, worth its firing probability."""
    layers, neurons = problem.shape
    value_LK1 = np.zeros((layers, neurons + 1))
    sorted_LN = np.take_along_axis(problem.activations_LN, order_LN, axis=1)
    np.cumsum(sorted_LN, axis=1, out=value_LK1[:, 1:])
    bytes_LK1 = np.arange(neurons + 1, dtype=np.int64) * problem.neuron_bytes_L[:, None]
    return Items(value_LK1, bytes_LK1, least_L, room, sorted_LN)


def batched(items: Items, size: int) -> Items:
    """The same with `size` items at a time; the last batch of a layer may be smaller."""
    last = items.value_LK1.shape[1] - 1
    edges = np.unique(np.append(np.arange(0, last, size), last))
    least_L = np.searchsorted(edges, items.least_L)  # above the count: impossible
    return Items(items.value_LK1[:, edges], items.bytes_LK1[:, edges], least_L, items.room)


def solve(items: Items, batch: int, gap: float) -> tuple[I64, float]:
    """Best counts a layer and a bound on every choice.

    Small problems and those of few layers are solved to the optimum; large ones in batches and to
    `gap`.
    """
    layers, most = items.value_LK1.shape
    free_L = np.full(layers, -1, np.int8)
    if layers * (most - 1) <= EXACT_BINARIES:
        return branch(items, free_L, 0.0, _NODES_EXACT)
    if layers <= _FEW_LAYERS:  # few choices, however wide
        count_L, bound = branch(items, free_L, 0.0, _NODES_FEW)
        if bound <= float(items.at(items.value_LK1, count_L).sum()) * (1 + gap):
            return count_L, bound
    root = relax(items, free_L)
    assert root is not None  # noqa: S101 - nothing is forced
    coarse = batched(items, batch)
    coarse_L, _ = branch(coarse, free_L, gap, _NODES_GAP)
    open_L = (coarse_L > 0) | (items.least_L == 0)
    fine_L = complete(items, open_L)  # batches are whole, so their least is no less than ours
    return pack(items, coarse_L * 0 if fine_L is None else fine_L, root.bound, gap)


def branch(items: Items, fixed_L: NDArray[np.int8], gap: float, nodes: int) -> tuple[I64, float]:
    """Depth first over which layers have items, those with the tighter bound first.

    Returns the best counts found and a bound; they meet where the search was complete.
    """
    best_L, best = np.zeros(len(fixed_L), np.int64), 0.0
    first = relax(items, fixed_L)
    stack = [(first.bound if first else 0.0, fixed_L)]
    open_bound = 0.0  # of branches left unsearched
    while stack:
        bound, fixed_L = stack.pop()
        if bound <= best * (1 + gap) * (1 + 1e-12):
            open_bound = max(open_bound, bound)
            continue
        if nodes == 0:
            open_bound = max(open_bound, bound)
            continue
        nodes -= 1
        node = relax(items, fixed_L)
        if node is None:
            continue
        tried_L = complete(items, (node.count_L > 0) | (items.least_L == 0))
        if tried_L is not None:
            value = float(items.at(items.value_LK1, tried_L).sum())
            if value > best or not best_L.any():
                best_L, best = tried_L, value
        unsure = _undecided(items, node.natural_L, node.gain_L, fixed_L)
        if unsure < 0:
            # Only the item at the price is split: with items of one size, complete() is optimal.
            open_bound = max(open_bound, 0.0 if items.uniform else node.bound)
            continue
        for choice in (0, 1) if node.gain_L[unsure] > 0 else (1, 0):
            child_L = fixed_L.copy()
            child_L[unsure] = choice
            found = relax(items, child_L)
            if found is not None:
                stack.append((min(found.bound, node.bound), child_L))
    return best_L, max(best, min(open_bound, first.bound if first else 0.0))


def _undecided(items: Items, natural_L: I64, gain_L: np.ndarray, fixed_L: np.ndarray) -> int:
    unclear_L = (fixed_L == -1) & items.possible_L & (natural_L < items.least_L)
    if not unclear_L.any():
        return -1
    return int(np.argmin(np.where(unclear_L, np.abs(gain_L), math.inf)))
