"""Dealing: which of several devices of a kind gets which of the neurons that the kind shall have.

A layer waits for its slowest device, so every layer is dealt, hottest first, in proportion to the
devices' shares. A policy decides what is hot; this decides nothing that the sum could tell.

Shape suffixes: L layers, N neurons of a layer, K neurons in the order in which they are dealt.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HOST = -1  # fits no device


def dealing_order(activations_LN: NDArray[np.float64]) -> NDArray[np.int64]:
    """Flat indices: layer after layer, hottest first, equals by id."""
    order_LN = np.argsort(-activations_LN, axis=1, kind="stable")
    starts_L1 = np.arange(len(order_LN))[:, None] * order_LN.shape[1]
    flat: NDArray[np.int64] = (starts_L1 + order_LN).reshape(-1)
    return flat


def deal(count: int, shares: Sequence[int]) -> NDArray[np.int8]:
    """Who gets each of so many equal things, [K], an index into shares, evenly mixed.

    In every run of them each gets its part, rounded; where they are at most the sum of the shares,
    nobody gets more than its share.
    """
    who = np.zeros(count, np.int8)
    open_ = np.arange(count)
    for index, share in enumerate(shares[:-1]):
        total = max(1, sum(shares[index:]))
        place = np.arange(len(open_), dtype=np.int64)
        mine = (place + 1) * share // total > place * share // total
        who[open_[mine]] = index
        open_ = open_[~mine]
    who[open_] = len(shares) - 1
    return who


def fit(
    who_K: NDArray[np.int8], bytes_K: NDArray[np.int64], rooms: Sequence[int]
) -> NDArray[np.int8]:
    """The same within the rooms, in bytes: what is too much moves on, or gets HOST.

    Needed where neurons differ in size; the last dealt of a device, its coldest, go first.
    """
    who_K = who_K.copy()
    used = [int(bytes_K[who_K == index].sum()) for index in range(len(rooms))]
    for index, room in enumerate(rooms):
        for at in np.flatnonzero(who_K == index)[::-1]:
            if used[index] <= room:
                break
            size = int(bytes_K[at])
            others = (i for i, other in enumerate(rooms) if i > index and used[i] + size <= other)
            to = next(others, HOST)
            used[index] -= size
            if to != HOST:
                used[to] += size
            who_K[at] = to
    return who_K
