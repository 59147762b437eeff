"""Small model shapes, placement problems and plans for tests; nothing here touches a weight."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.plan import Plan, make_plan
from hotcold.runtime.plan.problem import Placement, Problem, make_problem


def tiny_spec(layers: int = 3, neurons: int = 40, **changes: Any) -> ModelSpec:
    """A model shape with grouped-query attention."""
    fields: dict[str, Any] = {
        "architecture": "llama",
        "n_layers": layers,
        "d_model": 16,
        "n_neurons": neurons,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 4,
        "vocab_size": 50,
        "max_context": 64,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tied": True,
        "dtype": "float32",
    }
    return ModelSpec(**{**fields, **changes})


def tiny_problem(
    layers: int = 3,
    neurons: int = 40,
    vram: int | None = None,
    activations_LN: NDArray[np.float64] | None = None,
    seed: int = 0,
    profiled: bool = True,
    **changes: Any,
) -> Problem:
    """A problem of tiny_spec, random activations unless not profiled; changes: make_problem's."""
    if activations_LN is None and profiled:
        activations_LN = np.random.default_rng(seed).random((layers, neurons))
    arguments: dict[str, Any] = {
        "spec": tiny_spec(layers, neurons),
        "record_bytes": 192,
        "activations_LN": activations_LN,
        "vram_bytes": vram,
        "context": 32,
        "batch": 1,
        "predictor_bytes_L": [0] * layers,
        "predictor_density_L": None,
        "hardware": HardwareProfile.unmeasured(),
    }
    return make_problem(**{**arguments, **changes})


def module_bytes(problem: Problem) -> int:
    """Bytes of all modules of a problem."""
    return sum(module.bytes for module in problem.modules)


def tiny_plan(device_LN: NDArray[np.int8], **changes: Any) -> Plan:
    """A plan with exactly these owners."""
    layers, neurons = device_LN.shape
    problem = tiny_problem(layers, neurons, vram=2**40, **changes)
    modules = {module.name: "gpu0" for module in problem.modules}
    return make_plan(problem, Placement(device_LN, modules), "test", "checksum")
