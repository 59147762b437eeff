"""Packing: which layers get neurons at all, where memory's price alone leaves that open.

A price per byte (prefixes.py) settles how many neurons each open layer has. Where few layers can be
open, because each needs many neurons, it does not settle which, and its bound is loose: that is a
knapsack. It is small enough for dynamic programming once hopeless choices are out:

- a layer has no neuron, or its least number and then steps of STEP more. Between two steps the
  value is taken to be straight; by how much that is too little is known (`slack`). With straight
  pieces at most one layer stops inside a step, so whole steps with the room of one step more bound
  every choice;
- at any price a choice of a layer loses something against the layer's best; one that loses more
  than what is between the bound and the best known placement is in no better placement;
- memory is counted in units, each choice rounded down, so that the table's value is a bound.

Used by the policy `ilp`. Shape suffixes: L layers, K steps of a layer, S units of memory.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.policies.prefixes import F64, I64, Items, complete, relax

STEP = 16
_CELLS = 2 * 10**8  # of the table, about half a second
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
    """Better counts and a tighter bound than those known, by tables until `gap` or no progress.

    Args:
        items: neurons, all of one size.
        count_L: the best known counts.
        bound: on every choice.
        gap: relative distance at which to stop.
    """
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
    # What any choice in the room of a step more can have, at this price.
    bound = priced.price * (items.usable + STEP * size) + float(most_L1.sum()) + steps.slack
    fits_LK1 = (steps.edge_LK1 <= room + STEP) & (
        np.arange(gain_LK1.shape[1]) >= steps.items.least_L[:, None]
    )
    fits_LK1[:, 0] = True
    keep_LK1 = fits_LK1 & (most_L1 - gain_LK1 <= max(bound - best, 0.0) * (1 + 1e-9))
    unit = max(1, -(-int(keep_LK1.sum()) * room // _CELLS))
    choices = [np.flatnonzero(keep_K1) for keep_K1 in keep_LK1]
    if not all(len(k) for k in choices):
        return None, best  # some layer has nothing left that could be better than what is known
    slots = (room + STEP) // unit
    value_S, picks = np.zeros(slots + 1), []
    for layer, kept in enumerate(choices):
        value_S, pick_S = _add_layer(
            value_S, kept, steps.edge_LK1[layer, kept] // unit, steps.items.value_LK1[layer, kept]
        )
        picks.append(pick_S)
    return _read(steps, items, picks, unit, slots), float(value_S[slots])


def _add_layer(value_S: F64, kept: I64, units: I64, values: F64) -> tuple[F64, NDArray[np.int32]]:
    """The table with one layer more: best value by memory, and the choice that makes it."""
    next_S = np.full(len(value_S), -np.inf)
    pick_S = np.zeros(len(value_S), np.int32)
    for k, used, value in zip(kept, units, values, strict=True):
        if used >= len(value_S):
            break
        with_it = value_S[: len(value_S) - used] + value
        better = with_it > next_S[used:]
        next_S[used:][better] = with_it[better]
        pick_S[used:][better] = k
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
