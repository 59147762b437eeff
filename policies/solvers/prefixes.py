"""Prefixes: the only sets a solver has to look at, and the arithmetic of memory prices.

Within a layer neurons cost the same memory, so the ones placed should be the most valuable ones,
whatever their number: a solver chooses one number per layer, not one bit per neuron. Prices do the
rest. At a price per byte every layer picks its best prefix independently. The value that is left
after paying, plus the price of the whole memory, bounds every placement from above (the Lagrangian
dual). The price at which demand meets the memory gives the tightest bound and, almost, the
placement.

Used by the policies `ilp`, `per-layer` and `latency`.

Shape suffixes: L layers, K items of a layer (a neuron, or a batch of neurons), best first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.plan.problem import Problem

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
_HALVINGS = 60
_WIDE = 1024  # items of a layer up to which comparing all beats searching each layer


def hottest_first(problem: Problem) -> I64:
    """Neuron ids of each layer [L, N], most likely to fire first, equal ones by id."""
    # Several times as fast as a stable sort; runs of equals are put in order of id afterwards.
    cold_LN, neurons = -problem.activations_LN, problem.shape[1]
    order_LN: I64 = np.argsort(cold_LN, axis=1)
    for layer, order_N in enumerate(order_LN):
        sorted_N = cold_LN[layer, order_N]
        changes = sorted_N[1:] != sorted_N[:-1]
        if not changes.all():
            run_N = np.append(0, np.cumsum(changes))
            order_LN[layer] = np.sort(run_N * neurons + order_N) % neurons
    return order_LN


def place_prefixes(
    problem: Problem, order_LN: I64, count_L: I64, modules: Mapping[str, str]
) -> NDArray[np.int8]:
    """device_LN with the first count_L[l] neurons of each layer's order on GPU executors."""
    hot_LN = np.empty(problem.shape, np.bool_)
    np.put_along_axis(hot_LN, order_LN, np.arange(problem.shape[1]) < count_L[:, None], axis=1)
    return problem.divide(hot_LN, modules)


@dataclass(frozen=True, eq=False)
class Items:
    """What may be taken of each layer, in its order.

    Args:
        value_LK1: value of the first k items, k from 0 to K; concave in the bytes.
        bytes_LK1: bytes of the first k items.
        least_L: fewest items a layer may have, if it has any; more than K: it can have none.
        room: bytes that may be used.
        value_LK: value of each item where it is known better than as a difference, for ties.
    """

    value_LK1: F64
    bytes_LK1: I64
    least_L: I64
    room: int
    value_LK: F64 | None = None

    @cached_property
    def density_LK(self) -> F64:
        """Value per byte of each item, falling along a layer."""
        density_LK: F64 = (
            np.diff(self.value_LK1, axis=1) if self.value_LK is None else self.value_LK
        )
        density_LK = density_LK / (self.uniform or np.diff(self.bytes_LK1, axis=1))
        # Differences of running sums carry rounding; the order is known, so restore it.
        return np.minimum.accumulate(density_LK, axis=1, out=density_LK)

    @cached_property
    def _rising_LK(self) -> F64:
        return -self.density_LK

    @cached_property
    def uniform(self) -> int:
        """Bytes of an item if all items of all layers have the same, else 0."""
        size = int(self.bytes_LK1[0, 1])
        return size if bool((np.diff(self.bytes_LK1, axis=1) == size).all()) else 0

    @cached_property
    def usable(self) -> int:
        """Bytes that whole items can fill."""
        return self.room // self.uniform * self.uniform if self.uniform else self.room

    @cached_property
    def possible_L(self) -> NDArray[np.bool_]:
        """Which layers may have items at all: their least number is there, and fits the room."""
        most = self.value_LK1.shape[1] - 1
        least_bytes_L = self.at(self.bytes_LK1, np.minimum(self.least_L, most))
        possible_L: NDArray[np.bool_] = (self.least_L <= most) & (least_bytes_L <= self.usable)
        return possible_L

    def worth(self, price: float) -> I64:
        """How many items of each layer are worth more than the price per byte."""
        density_LK = self.density_LK
        if density_LK.shape[1] <= _WIDE:
            count_L: I64 = (density_LK > price).sum(axis=1)
            return count_L
        return np.array([row.searchsorted(-price, side="left") for row in self._rising_LK])

    def at(self, table_LK1: NDArray[Any], count_L: I64) -> NDArray[Any]:
        """Entries of a running sum for a count a layer."""
        entry_L: NDArray[Any] = table_LK1[np.arange(len(count_L)), count_L]
        return entry_L


@dataclass(frozen=True, eq=False)
class Priced:
    """The relaxed problem, solved.

    Args:
        bound: no choice that keeps to the fixed layers has more value.
        price: the memory's, per byte.
        natural_L: items worth more than the price, whatever least_L says.
        gain_L: what each layer's best choice leaves after paying for memory.
        count_L: that choice; it fits the room.
    """

    bound: float
    price: float
    natural_L: I64
    gain_L: F64
    count_L: I64


def relax(items: Items, fixed_L: NDArray[np.int8]) -> Priced | None:
    """Price the memory.

    fixed_L is by layer 1 where it must have its least items, 0 where it has none, -1 where it is
    free. Returns none where what is fixed does not fit.
    """
    possible_L = items.possible_L
    fixed_L = np.where(possible_L, fixed_L, 0).astype(np.int8)
    least_L = np.where(possible_L, items.least_L, 0)
    forced = int(items.at(items.bytes_LK1, np.where(fixed_L == 1, least_L, 0)).sum())
    if forced > items.usable:
        return None

    def choose(price: float) -> tuple[int, Priced]:
        natural_L = items.worth(price)
        count_L = np.maximum(natural_L, least_L)
        bytes_L = items.at(items.bytes_LK1, count_L)
        gain_L = (items.at(items.value_LK1, count_L) - price * bytes_L).astype(np.float64)
        taken_L = (fixed_L == 1) | ((fixed_L == -1) & (gain_L > 0))
        bound = float(price * items.usable + gain_L[taken_L].sum())
        count_L = np.where(taken_L, count_L, 0)
        used = int(bytes_L[taken_L].sum())
        return used, Priced(bound, price, natural_L, gain_L, count_L)

    # Above the best density only forced items are taken, and those fit.
    low, high = 0.0, float(items.density_LK.max()) * (1 + 1e-9) + 1e-300
    used, best = choose(low)
    if used <= items.usable:
        return best
    bound = best.bound
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        used, found = choose(middle)
        bound = min(bound, found.bound)
        if used <= items.usable:
            high, best = middle, found
        else:
            low = middle
    if best.price != high:
        _, best = choose(high)
    return Priced(min(bound, best.bound), best.price, best.natural_L, best.gain_L, best.count_L)


def complete(items: Items, open_L: NDArray[np.bool_]) -> I64 | None:
    """The best counts when exactly the open layers may have items, each at least its least.

    Optimal where items are uniform: what is forced, then the rest by value per byte. Returns none
    where what is forced does not fit.
    """
    found = relax(items, open_L.astype(np.int8))
    if found is None:
        return None
    count_L: I64 = found.count_L.copy()
    left = items.usable - int(items.at(items.bytes_LK1, count_L).sum())
    # The rest is filled item by item: ties at the price, or smaller items behind ones too large.
    sizes_LK = np.diff(items.bytes_LK1, axis=1)
    size = items.value_LK1.shape[1] - 1
    layers = np.flatnonzero(open_L & items.possible_L)
    while left > 0 and len(layers):
        at = layers[count_L[layers] < size]
        at = at[sizes_LK[at, count_L[at]] <= left]
        if not len(at):
            break
        next_ = items.density_LK[at, count_L[at]]
        layer = at[int(np.argmax(next_))]
        # A run of equals in one step: profiles without counts are all ties.
        start, value = count_L[layer], next_.max()
        same = int((items.density_LK[layer, start:] >= value).sum())
        run = items.bytes_LK1[layer, start : start + same + 1] - items.bytes_LK1[layer, start]
        step = max(1, int(np.searchsorted(run, left, side="right")) - 1)
        count_L[layer] += step
        left -= int(run[min(step, same)])
    return count_L
