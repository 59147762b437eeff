"""The activations in plain numpy, one formula each: they share no code with the project's table."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
ACTIVATIONS = ("relu", "relu2", "fatrelu", "relu both")
KINDS = [(name, gated) for name in ACTIVATIONS for gated in (True, False)][:-1]  # both: gated


def fires(name: str, gate: Any, threshold: float = 0.0) -> NDArray[np.bool_]:
    """Where a neuron fires, of its gate pre-activation."""
    if name == "fatrelu":
        return np.asarray(gate) >= threshold
    return np.asarray(gate) > 0


def factor(name: str, gate: F64, up: F64 | None = None, threshold: float = 0.0) -> F64:
    """What a down column is multiplied by, of gate pre-activation and up projection (None: 1)."""
    if name == "fatrelu":
        value = np.where(gate >= threshold, gate, 0.0)
    elif name == "relu2":
        value = np.maximum(gate, 0.0) ** 2
    else:
        value = np.maximum(gate, 0.0)
    if up is None:
        return value
    return value * (np.maximum(up, 0.0) if name == "relu both" else up)


def clear_threshold(name: str, gate: F64) -> float:
    """0, or for fatrelu the middle of the widest gap that leaves a part of what is above 0.

    A pre-activation next to the threshold would fire or not by its last bit.
    """
    if name != "fatrelu":
        return 0.0
    above = np.sort(gate[gate > 0])
    some = np.append(above[len(above) // 4 : 3 * len(above) // 4 + 2], [])
    if len(some) < 2:
        return 0.5
    widest = int(np.argmax(np.diff(some)))
    return float(np.float32((some[widest] + some[widest + 1]) / 2))
