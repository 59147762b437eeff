"""Placement problems of published shapes, without their weights: what `solve --shape` solves.

Sizes and statistics are those of plant/shapes.py; how often each neuron fires follows the law of
plant/statistics.py, in an order drawn per layer. Unless an Ask says otherwise, a predictor is taken
to propose exactly what fires, and to need no memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPE_BYTES
from hotcold.native.errors import ConfigError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.shapes import Shape, find_shape
from hotcold.runtime.offline.plant.statistics import Statistics, firing_probabilities
from hotcold.runtime.plan.problem import Problem, make_problem
from hotcold.runtime.plan.work import matrices_bytes
from hotcold.runtime.topology import CLASSIC, Topology

F64 = NDArray[np.float64]
_COARSE = 2048  # points the law is fitted on; between them it is interpolated


@dataclass(frozen=True)
class Ask:
    """In what a shape shall differ from its row in the table.

    None is the shape's own. Predictors of width 0 take no memory; int8 has a scale a row beside the
    matrices; `overfire` is neurons proposed for each that fires, kv_bytes of an element, sequences
    those decoded at once, topology whose devices there are.

    Raises:
        ConfigError: a number out of range.
    """

    density: float | None = None
    share80: float | None = None
    predictor_width: int = 0
    predictor_dtype: str = "float16"
    overfire: float = 1.0
    kv_bytes: int = 4
    embed_on_host: bool = False
    sequences: int = 1
    topology: Topology = CLASSIC

    def __post_init__(self) -> None:
        if self.predictor_dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"predictor dtype {self.predictor_dtype!r} is unknown; choose from "
                f"{', '.join(DTYPE_BYTES)}"
            )
        if not 1 <= self.overfire <= 1000:
            raise ConfigError(f"overfire is {self.overfire}; it must be from 1 to 1000")
        if not 0 <= self.predictor_width <= 1 << 20:
            raise ConfigError(f"predictor width {self.predictor_width} is outside 0..{1 << 20}")

    def predictor_bytes(self, spec: ModelSpec) -> int:
        """Bytes of one layer's predictor: width * (d + N) weights, int8 with float32 row scales."""
        return matrices_bytes(spec, self.predictor_width, self.predictor_dtype)


def shaped_problem(  # noqa: PLR0917 - the parts of a problem, each once
    name: str,
    vram_bytes: int | None | Sequence[int | None],
    context: int = 512,
    dtype: str = "float16",
    hardware: HardwareProfile | None = None,
    seed: int = 0,
    ask: Ask | None = None,
) -> Problem:
    """The placement problem of a published shape.

    vram_bytes is None as in make_problem; a `hardware` of None was not measured.

    Raises:
        ConfigError: no such shape, or sizes out of range.
    """
    ask = Ask() if ask is None else ask
    listed = find_shape(name)
    shape = replace(
        listed,
        density=listed.density if ask.density is None else ask.density,
        share80=listed.share80 if ask.share80 is None else ask.share80,
    )
    spec = shape.spec(None, dtype)
    p_LN = shaped_activations(shape, seed)
    return make_problem(
        spec,
        NeuronRecord.for_spec(spec).bytes,
        p_LN,
        vram_bytes,
        context,
        ask.sequences,
        [ask.predictor_bytes(spec)] * spec.n_layers,
        np.minimum(1.0, p_LN.mean(axis=1) * ask.overfire).tolist(),
        HardwareProfile.unmeasured() if hardware is None else hardware,
        kv_bytes=ask.kv_bytes,
        embed_on_host=ask.embed_on_host,
        topology=ask.topology,
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
    """The law on that many points; all quiet layers have the same."""
    return firing_probabilities(points, density, share80)
