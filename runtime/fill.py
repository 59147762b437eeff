"""Filling one device: modules in their default order, then neurons by score; and counting bytes.

The arithmetic behind Problem.fill and every budget check, on plain data: what is taken first, what
no longer fits, how ties are broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from hotcold.runtime.problem import Module

MODULE_ORDER = ("norms", "attention", "head", "predictor", "kv")


def fill_modules(
    modules: Sequence[Module], room: int, device: str, host: str
) -> tuple[dict[str, str], int]:
    """Homes of all modules when `device` has room for `room` bytes, and what is left of them.

    A module that does not fit goes to the host and the next is tried; modules that must share a
    device are one.
    """
    homes: dict[str, str] = {}
    for module in sorted(modules, key=_default_order):
        if module.name in homes:
            continue
        label = module.must_share_device
        group = [other for other in modules if label and other.must_share_device == label]
        group = group or [module]
        size = sum(member.bytes for member in group)
        home = device if size <= room else host
        room -= size if home == device else 0
        homes.update({member.name: home for member in group})
    return homes, room


def best_neurons(
    score_LN: NDArray[Any], neuron_bytes_L: NDArray[np.int64], room: int
) -> NDArray[np.int64]:
    """Flat indices (layer * N + id) of the neurons taken: best first, each if it still fits."""
    # The stable sort keeps equal scores in order of (layer, id).
    best_first = np.argsort(-score_LN.astype(np.float64).reshape(-1), kind="stable")
    bytes_of = neuron_bytes_L[best_first // score_LN.shape[1]]
    taken: list[NDArray[np.int64]] = []
    # Take the longest run that fits, drop what is now too large, go on behind it. A neuron that did
    # not fit never fits later, so this is the same as asking one by one; every round but the last
    # exhausts one size of neuron, so there are at most L + 1.
    while True:
        fits = bytes_of <= room
        best_first, bytes_of = best_first[fits], bytes_of[fits]
        if not len(best_first):
            return np.concatenate([*taken, best_first])
        total = np.cumsum(bytes_of)
        run = int(np.searchsorted(total, room, side="right"))
        taken.append(best_first[:run])
        room -= int(total[run - 1])
        best_first, bytes_of = best_first[run:], bytes_of[run:]


def bytes_by_device(
    device_LN: NDArray[np.int8],
    neuron_bytes_L: NDArray[np.int64],
    modules: Mapping[str, str],
    module_bytes: Mapping[str, int],
    devices: tuple[str, ...],
) -> dict[str, int]:
    """Bytes that each device holds under a placement of neurons and modules."""
    used = {}
    for index, device in enumerate(devices):
        count_L = np.count_nonzero(device_LN == index, axis=1)
        used[device] = sum(
            int(count) * int(size) for count, size in zip(count_L, neuron_bytes_L, strict=True)
        )
    for name, home in modules.items():
        used[home] += module_bytes[name]
    return used


def _default_order(module: Module) -> tuple[int, int, str]:
    kind = MODULE_ORDER.index(module.kind) if module.kind in MODULE_ORDER else len(MODULE_ORDER)
    return kind, -1 if module.layer is None else module.layer, module.name
