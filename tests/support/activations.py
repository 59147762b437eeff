"""The activations in plain numpy, one formula each: they share no code with the project's table.

And Llamas that have one.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.oracle import F64, Mask, Oracle

from hotcold.runtime.model.architectures import hf_config
from hotcold.runtime.model.architectures.limits import check_spec
from hotcold.runtime.model.spec import ModelSpec

THRESHOLD = 0.3  # of fatrelu, in models
DENSE = ("silu", "gelu", "gelu tanh")
SPARSE = ("relu", "relu2", "fatrelu", "relu both")
ACTIVATIONS = (*SPARSE, *DENSE)
KINDS = [(name, gated) for name in ACTIVATIONS for gated in (True, False)]
for absent in (("relu both", False), ("gelu", True), ("gelu tanh", False)):
    KINDS.remove(absent)
SPARSE_KINDS = [kind for kind in KINDS if kind[0] in SPARSE]


def fires(name: str, gate: Any, threshold: float = 0.0) -> NDArray[np.bool_]:
    """Where a neuron fires, of its gate pre-activation."""
    if name == "fatrelu":
        return np.asarray(gate) >= threshold
    if name in DENSE:
        return np.asarray(gate) != 0
    return np.asarray(gate) > 0


def factor(name: str, gate: F64, up: F64 | None = None, threshold: float = 0.0) -> F64:
    """What a down column is multiplied by, of gate pre-activation and up projection (None: 1)."""
    if name == "fatrelu":
        value = np.where(gate >= threshold, gate, 0.0)
    elif name == "relu2":
        value = np.maximum(gate, 0.0) ** 2
    elif name == "silu":
        value = gate / (1 + np.exp(-gate))
    elif name == "gelu":
        value = gate * torch.special.ndtr(torch.as_tensor(gate)).numpy()
    elif name == "gelu tanh":
        z = np.longdouble(math.sqrt(2 / math.pi)) * (gate + 0.044715 * gate**3)
        value = (gate * np.exp(z) / (np.exp(z) + np.exp(-z))).astype(np.float64)
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


@dataclass(frozen=True)
class Acting(Oracle):
    """A Llama with another activation; threshold: of fatrelu."""

    name: str = "relu"
    threshold: float = 0.0

    def ffn(self, index: int, x_TD: F64, gate_TN: F64, mask_TN: Mask) -> F64:
        """Sum over the unmasked neurons."""
        up_TN = x_TD @ self.layer(index, "mlp.up_proj").T
        c_TN = np.where(mask_TN, factor(self.name, gate_TN, up_TN, self.threshold), 0.0)
        return c_TN @ self.layer(index, "mlp.down_proj").T

    def fires(self, gates: F64) -> Mask:
        """Where neurons fire."""
        return fires(self.name, gates, self.threshold)


def threshold_of(name: str) -> float:
    return THRESHOLD if name == "fatrelu" else 0.0


def oracle(folder: Path, name: str) -> Acting:
    plain = Oracle.load(folder)
    return Acting(plain.config, plain.tensors, name, threshold_of(name))


def read_as(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every checkpoint is read as if its config.json named this activation."""

    def checked(_self: Any, spec: ModelSpec) -> ModelSpec:
        spec = replace(spec, activation=name, activation_threshold=threshold_of(name))
        check_spec(spec)
        return spec

    monkeypatch.setattr(hf_config.Config, "checked", checked)
