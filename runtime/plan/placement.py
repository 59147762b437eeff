"""The rules a placement must keep, and the message when it does not.

Called by plan.py on whatever a policy returned, and in the policies' child process. Every message
starts with the policy's name, because only its author can fix it.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import PolicyError
from hotcold.runtime.plan.problem import Placement, Problem

_NOTE_LIMIT = 10_000  # characters; a note is a line for people
_FIGURE_LIMIT = 64


def check_placement(problem: Problem, placement: Any, blame: str) -> None:
    """Refuse a placement that breaks a rule.

    Raises:
        PolicyError: one sentence naming the policy, what is wrong, and what would be right.
    """
    fault = _fault(problem, placement)
    if fault is not None:
        raise PolicyError(f"policy {blame!r} {fault}")


def _fault(problem: Problem, placement: Any) -> str | None:
    if not isinstance(placement, Placement):
        kind = "nothing" if placement is None else f"an object of type {type(placement).__name__}"
        return f"returned {kind}; place(problem) must return a Placement"
    if not isinstance(placement.note, str):
        return f"returned a note of type {type(placement.note).__name__}; it must be text"
    if len(placement.note) > _NOTE_LIMIT:
        return f"returned a note of {len(placement.note)} characters; at most {_NOTE_LIMIT}"
    return (
        _figure_fault(placement.figures)
        or _neuron_fault(problem, placement.device_LN)
        or _format_fault(problem, placement.device_LN, placement.dtype_LN)
        or _module_fault(problem, placement.modules)
        or _budget_fault(problem, placement)
    )


def _figure_fault(figures: Any) -> str | None:
    if not isinstance(figures, Mapping):
        return f"returned figures of type {type(figures).__name__}; it must map name to number"
    if len(figures) > _FIGURE_LIMIT:
        return f"returned {len(figures)} figures; at most {_FIGURE_LIMIT}"
    for name, value in figures.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not isinstance(name, str) or not number or not math.isfinite(value):
            return f"returned the figure {name!r} = {value!r}; it must be a finite number"
    return None


def _neuron_fault(problem: Problem, device_LN: Any) -> str | None:
    if not isinstance(device_LN, np.ndarray) or device_LN.dtype != np.int8:
        kind = str(getattr(device_LN, "dtype", type(device_LN).__name__))
        return f"returned device_LN of {kind}; it must be a numpy array, x.astype(np.int8)"
    if device_LN.shape != problem.shape:
        return f"returned device_LN of shape {device_LN.shape}; the model has {problem.shape}"
    last = len(problem.devices) - 1
    wrong = np.argwhere((device_LN < 0) | (device_LN > last))
    if len(wrong):
        layer, neuron = (int(index) for index in wrong[0])
        value = int(device_LN[layer, neuron])
        return f"put neuron {neuron} of layer {layer} on device {value}; devices are 0 to {last}"
    return None


def _format_fault(problem: Problem, device_LN: NDArray[np.int8], dtype_LN: Any) -> str | None:
    if dtype_LN is None:
        return None
    if not isinstance(dtype_LN, np.ndarray) or dtype_LN.dtype != np.int8:
        kind = str(getattr(dtype_LN, "dtype", type(dtype_LN).__name__))
        return f"returned dtype_LN of {kind}; it must be None or a numpy array, x.astype(np.int8)"
    if dtype_LN.shape != problem.shape:
        return f"returned dtype_LN of shape {dtype_LN.shape}; the model has {problem.shape}"
    allowed = [name for name in (problem.dtype, *problem.formats) if name in DTYPES]
    wrong = np.argwhere(~np.isin(dtype_LN, [DTYPES[name] for name in allowed]))
    if len(wrong):
        layer, neuron = (int(index) for index in wrong[0])
        words = " or ".join(f"{int(DTYPES[name])} ({name})" for name in allowed)
        given = format_name(int(dtype_LN[layer, neuron]))
        return f"gave neuron {neuron} of layer {layer} the format {given}; here it may be {words}"
    for index, device in enumerate(problem.devices):
        if (at := first_mixed(device_LN == index, dtype_LN)) is not None:
            found = np.unique(dtype_LN[at, device_LN[at] == index])
            names = " and ".join(format_name(int(number)) for number in found)
            return (
                f"stores neurons of layer {at} on {device} as {names}; give all that a device "
                "has of a layer one format"
            )
    return None


def format_name(number: int) -> str:
    """A format's number and word."""
    words = [word for word, member in DTYPES.items() if member == number]
    return f"{number} ({words[0]})" if words else str(number)


def first_mixed(own_LN: NDArray[np.bool_], dtype_LN: NDArray[np.int8]) -> int | None:
    """The first layer in which neurons of one device have several formats."""
    lowest_L = np.where(own_LN, dtype_LN, 127).min(axis=1)
    mixed_L = lowest_L < np.where(own_LN, dtype_LN, -128).max(axis=1)
    return int(mixed_L.argmax()) if mixed_L.any() else None


def _module_fault(problem: Problem, modules: Any) -> str | None:  # noqa: PLR0911 - a fault each
    if not isinstance(modules, Mapping):
        return f"returned modules of type {type(modules).__name__}; it must map name to device"
    names = {module.name for module in problem.modules}
    missing = sorted(names - set(modules))
    if missing:
        return f"gave module {missing[0]!r} no device; problem.modules lists all {len(names)}"
    unknown = [name for name in modules if name not in names]
    if unknown:
        return f"placed a module {unknown[0]!r}, which problem.modules does not have"
    homes: dict[str, tuple[str, str]] = {}
    for module in problem.modules:
        home = modules[module.name]
        if not isinstance(home, str) or home not in problem.devices:
            devices = ", ".join(problem.devices)
            return f"put module {module.name!r} on {home!r}; devices are {devices}"
        if home in problem.devices[1 : problem.gpus]:
            other = f"{problem.devices[0]} or the host, {problem.devices[-1]}"
            return (
                f"put module {module.name!r} on {home}, which holds neurons alone; choose {other}"
            )
        label = module.must_share_device
        if label is not None:
            other, other_home = homes.setdefault(label, (module.name, home))
            if other_home != home:
                return f"put {other!r} and {module.name!r} apart; they must share a device"
    return None


def _budget_fault(problem: Problem, placed: Placement) -> str | None:
    used = problem.bytes_by_device(placed.device_LN, placed.modules, placed.dtype_LN)
    for device, need in used.items():
        budget = problem.budgets[device]
        if need > budget:
            return (
                f"puts {need} bytes on {device}, {need - budget} over its budget of {budget}; "
                "place fewer neurons there, problem.fill(score) never exceeds it"
            )
    return None
