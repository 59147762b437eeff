"""Single neurons moved: from moves (layer, neuron, device) to owners, and to the plan of these."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import BudgetError, ConfigError
from hotcold.runtime.plan.plan import Plan

Move = tuple[int, int, int | str]  # layer, neuron, device: its index or its name


def owners_after(plan: Plan, moves: Iterable[Move]) -> NDArray[np.int8]:
    """Owners of all neurons after some moves, int8 [L, N]; a neuron may already be there.

    Raises:
        ConfigError: a layer, neuron or device that there is not, or a neuron named twice.
    """
    device_LN: NDArray[np.int8] = np.array(plan.device_LN)
    seen = set()
    layers, neurons = plan.shape
    for move in moves:
        try:
            layer, neuron, device = move
            place = (int(layer), int(neuron))
            index = plan.devices.index(device) if isinstance(device, str) else int(device)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{move!r:.80} is no move; give (layer, neuron, device), the device one of "
                f"{', '.join(plan.devices)} or its index"
            ) from None
        for what, value, count in (("layer", place[0], layers), ("neuron", place[1], neurons)):
            if not 0 <= value < count:
                raise ConfigError(f"move {move!r}: {what} {value} is outside 0 to {count - 1}")
        if not 0 <= index < len(plan.devices):
            raise ConfigError(
                f"move {move!r}: device {index} is outside 0 to {len(plan.devices) - 1}"
            )
        if place in seen:
            raise ConfigError(f"neuron {place[1]} of layer {place[0]} is moved twice; name it once")
        seen.add(place)
        device_LN[place] = index
    return device_LN


def with_owners(plan: Plan, device_LN: NDArray[np.int8]) -> Plan:
    """The plan with these owners: a neuron has the format of what its device has of that layer."""
    if np.array_equal(device_LN, plan.device_LN):
        return plan
    if plan.dtype_LN is None:
        return replace(plan, device_LN=device_LN)
    dtype_LN = np.full(plan.shape, DTYPES[plan.dtype], np.int8)
    for layer in range(plan.shape[0]):
        for device in range(len(plan.devices)):
            if kind := plan.format(layer, device):
                dtype_LN[layer][device_LN[layer] == device] = DTYPES[kind]
    return replace(plan, device_LN=device_LN, dtype_LN=dtype_LN)


def check_budgets(plan: Plan) -> None:
    """Refuse a plan that does not fit its budgets.

    Raises:
        BudgetError: names the device, its bytes and its budget.
    """
    for device, used in plan.bytes_by_device.items():
        budget = plan.budgets[device]
        if used > budget:
            raise BudgetError(
                f"these moves put {used:,} bytes on {device}, {used - budget:,} over its budget of "
                f"{budget:,}; move as many neurons away from it, or raise its budget",
                needed_bytes=used,
                budget_bytes=budget,
            )
