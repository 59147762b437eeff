"""Placement problems of published shapes, without their weights: what `solve --shape` solves.

Sizes and statistics are those of plant/shapes.py; how often each neuron fires follows the law of
plant/statistics.py, in an order drawn per layer. A predictor is taken to propose exactly what
fires, and to need no memory.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.hardware import HardwareProfile
from hotcold.runtime.model import DType
from hotcold.runtime.neurons import NeuronRecord
from hotcold.runtime.plant.shapes import Shape, find_shape
from hotcold.runtime.plant.statistics import Statistics, firing_probabilities
from hotcold.runtime.problem import Problem, make_problem

F64 = NDArray[np.float64]
_COARSE = 2048  # points the law is fitted on; between them it is interpolated


def shaped_problem(
    name: str,
    vram_bytes: int | None,
    context: int = 512,
    dtype: DType = "float16",
    hardware: HardwareProfile | None = None,
    seed: int = 0,
) -> Problem:
    """The placement problem of a published shape.

    Args:
        name: of the shape, "opt-175b".
        vram_bytes: budget of "gpu0"; None as in make_problem.
        context: positions of KV cache.
        dtype: of the matrices.
        hardware: rates of the machine; None: not measured.
        seed: of the order of neurons.

    Raises:
        ConfigError: no such shape, or sizes out of range.
    """
    shape = find_shape(name)
    spec = shape.spec(None, dtype)
    return make_problem(
        spec,
        NeuronRecord.for_spec(spec).record_bytes,
        shaped_activations(shape, seed),
        vram_bytes,
        context,
        1,
        [0] * spec.n_layers,
        None,
        HardwareProfile.unmeasured() if hardware is None else hardware,
    )


def shaped_activations(shape: Shape, seed: int = 0) -> F64:
    """Firing probabilities [L, N] with the shape's density, skewness and quiet layers."""
    statistics = Statistics(shape.density, shape.share80, shape.quiet)
    random = np.random.default_rng(seed)
    fine_N = (np.arange(shape.neurons) + 0.5) / shape.neurons
    p_LN = np.empty((shape.layers, shape.neurons))
    for layer, density in enumerate(statistics.density_L(shape.layers)):
        coarse = min(_COARSE, shape.neurons)
        law_C = _law(coarse, float(density), shape.share80)
        at_C = (np.arange(coarse) + 0.5) / coarse
        # A power law is straight in logarithms.
        p_N = np.exp(np.interp(np.log(fine_N), np.log(at_C), np.log(law_C)))
        p_LN[layer] = random.permutation(p_N)
    return p_LN


@lru_cache(maxsize=256)
def _law(points: int, density: float, share80: float) -> F64:
    """The law on so many points; quiet layers all have the same."""
    return firing_probabilities(points, density, share80)
