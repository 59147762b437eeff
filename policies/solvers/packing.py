"""Packing: which layers get neurons at all, where a price of memory does not decide it.

A price per byte (prefixes.py) decides how many neurons each open layer has. Where few layers can be
open, because each needs many neurons, it does not decide which, and its bound is loose. That is a
knapsack problem, small enough for dynamic programming once hopeless choices are removed:

- a layer has no neuron, or its least number and then steps of STEP more. Between two steps the
  value is taken to be straight; by how much that is too little is known (`slack`). With straight
  pieces at most one layer stops inside a step, so whole steps with the room of one step more bound
  every choice;
- at any price a choice of a layer loses something against the layer's best. A choice that loses
more than the difference between the bound and the best known placement is in no better placement; -
memory is counted in units, each choice rounded down, so that the table's value is a bound.

Used by the policy `ilp`.

Shape suffixes: L layers, K steps of a layer, S units of memory, B a block of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.policies.solvers.prefixes import F64, I64, Items, complete, relax

STEP = 16
_CELLS = 2 * 10**8  # of the table, about a quarter of a second
_CHOICES = 2 * 10**4  # rows of the table; each has a fixed cost
_BLOCK = 2**14  # units of memory that are looked at together
_ROUNDS = 3  # each knows a better placement, so fewer choices are left and units are smaller


@dataclass(frozen=True, eq=False)
class Steps:
    """The layers' choices.

    Args:
        items: first item of a layer: its least number of neurons; then STEP more each.
        edge_LK1: neurons of the first k items.
        slack: how much more than between two steps' values all layers can have.
    """

    items: Items
    edge_LK1: I64
    slack: float


def in_steps(items: Items) -> Steps:
    """The same neurons, the least number of a layer in one item."""
    layers, most = items.value_LK1.shape[0], items.value_LK1.shape[1] - 1
    first_L = np.where(items.least_L == 0, min(STEP, most), np.clip(items.least_L, 1, most))
    count = int(-(-(most - first_L.min()) // STEP)) + 1
    edge_LK1 = np.concatenate(
        [np.zeros((layers, 1), np.int64), first_L[:, None] + STEP * np.arange(count)], axis=1
    )
    real_LK1 = np.minimum(edge_LK1, most)  # steps past the last neuron are worth nothing
    value_LK1 = np.take_along_axis(items.value_LK1, real_LK1, axis=1)
    slack_L = np.zeros(layers)
    for layer in np.flatnonzero(items.possible_L):
        n = np.arange(first_L[layer] if items.least_L[layer] else 0, most + 1)
        straight = np.interp(n, real_LK1[layer], value_LK1[layer])
        slack_L[layer] = (items.value_LK1[layer, n] - straight).max()
    least_L = np.where(items.least_L > most, count + 2, np.minimum(items.least_L, 1))
    bytes_LK1 = edge_LK1 * items.bytes_LK1[:, 1:2]
    open_ = items.usable // max(1, int(bytes_LK1[:, 1].min()))  # layers, at most
    slack = float(np.sort(slack_L)[::-1][:open_].sum())
    return Steps(Items(value_LK1, bytes_LK1, least_L, items.room), edge_LK1, slack)


def pack(items: Items, count_L: I64, bound: float, gap: float) -> tuple[I64, float]:
    """Better counts and a tighter bound than those known, by tables until `gap` or no progress."""
    steps, best = in_steps(items), _value(items, count_L)
    for _ in range(_ROUNDS):
        if bound <= best * (1 + gap):
            break
        found = _table(steps, items, best)
        if found is None:
            break
        tried_L, value = found
        gained = bound - min(bound, max(best, value + steps.slack))
        bound -= gained
        if tried_L is not None and _value(items, tried_L) > best:
            count_L, best = tried_L, _value(items, tried_L)
        elif gained < gap * bound:
            break
    return count_L, max(bound, best)


def _value(items: Items, count_L: I64) -> float:
    return float(items.at(items.value_LK1, count_L).sum())


def _table(steps: Steps, items: Items, best: float) -> tuple[I64 | None, float] | None:
    """One table: counts from it, if they fit, and its value; None where prices say nothing."""
    priced = relax(steps.items, np.full(len(items.least_L), -1, np.int8))
    if priced is None:
        return None
    size = int(items.bytes_LK1[0, 1])
    room = items.usable // size
    gain_LK1 = steps.items.value_LK1 - priced.price * steps.items.bytes_LK1
    most_L1 = np.maximum(gain_LK1.max(axis=1, keepdims=True), 0)
    # The value that any choice can have at this price with the room of one step more.
    bound = priced.price * (items.usable + STEP * size) + float(most_L1.sum()) + steps.slack
    fits_LK1 = (steps.edge_LK1 <= room + STEP) & (
        np.arange(gain_LK1.shape[1]) >= steps.items.least_L[:, None]
    )
    fits_LK1[:, 0] = True
    keep_LK1 = fits_LK1 & (most_L1 - gain_LK1 <= max(bound - best, 0.0) * (1 + 1e-9))
    choices = [np.flatnonzero(keep_K1) for keep_K1 in keep_LK1]
    if not all(len(k) for k in choices):
        return None, best  # some layer has no choice left that could improve on the best known
    unit = _unit([steps.edge_LK1[layer, kept] for layer, kept in enumerate(choices)], room)
    slots = (room + STEP) // unit
    value_S, picks = np.zeros(slots + 1), []
    for layer, kept in enumerate(choices):
        units, values = steps.edge_LK1[layer, kept] // unit, steps.items.value_LK1[layer, kept]
        rows = _best_of_equals(units, values)
        value_S, pick_S = _add_layer(value_S, kept[rows], units[rows], values[rows])
        picks.append(pick_S)
    return _read(steps, items, picks, unit, slots), float(value_S[slots])


def _unit(edges: list[I64], room: int) -> int:
    unit = 1
    while True:
        rows = sum(1 + int(np.count_nonzero(np.diff(edge_K // unit))) for edge_K in edges)
        if (rows <= _CHOICES and rows * (room // unit) <= _CELLS) or unit > room:
            return unit
        unit *= 2


def _best_of_equals(units: I64, values: F64) -> I64:
    """Of the choices that take as many units the one worth most, the smallest of equals."""
    last = np.flatnonzero(np.append(np.diff(units) > 0, True))
    first = np.append(0, last[:-1] + 1)
    rows: I64 = np.maximum(np.searchsorted(values, values[last]), first)
    return rows


def _add_layer(value_S: F64, kept: I64, units: I64, values: F64) -> tuple[F64, NDArray[np.int32]]:
    """The table with one layer more: best value by memory, and the choice that makes it."""
    size = len(value_S)
    next_S = np.full(size, -np.inf)
    pick_S = np.zeros(size, np.int32)
    # A block stays in the cache while all choices pass over it: twice as fast as one at a time.
    with_B, better_B = np.empty(_BLOCK), np.empty(_BLOCK, np.bool_)
    for begin in range(0, size, _BLOCK):
        end = min(size, begin + _BLOCK)
        for k, used, value in zip(kept, units, values, strict=True):
            first = max(begin, used)
            if first >= end:
                break
            span = slice(first, end)
            with_it = np.add(value_S[first - used : end - used], value, out=with_B[: end - first])
            better = np.greater(with_it, next_S[span], out=better_B[: end - first])
            np.copyto(next_S[span], with_it, where=better)
            np.copyto(pick_S[span], k, where=better)
    return next_S, pick_S


def _read(
    steps: Steps,
    items: Items,
    picks: list[NDArray[np.int32]],
    unit: int,
    slots: int,
) -> I64 | None:
    """The open layers of the table's best entry that really fits, filled neuron by neuron."""
    room = items.usable // int(items.bytes_LK1[0, 1])
    for end in range(slots, max(-1, slots - 4 * len(picks)), -1):
        left, chosen_L = end, np.zeros(len(picks), np.int64)
        for layer in reversed(range(len(picks))):
            chosen_L[layer] = picks[layer][left]
            left -= int(steps.edge_LK1[layer, chosen_L[layer]]) // unit
        least = int(np.where(chosen_L > 0, items.least_L, 0).sum())
        if left >= 0 and least <= room:
            return complete(items, (chosen_L > 0) | (items.least_L == 0))
    return None
