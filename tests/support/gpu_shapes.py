"""Executors as the layout of GPU memory is asked about them: real placements of model shapes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hotcold.native.abi.names import PARTS
from hotcold.native.bindings.gpu_layout import GpuShape, LayerShape
from hotcold.runtime.engine.gpu_memory import model_shape, predictor_shape
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_forms import SignLayer


def matrices(spec: ModelSpec, hidden: int, biased: bool) -> tuple[Any, ...]:
    """Predictors that take no memory here: views of one number."""
    fc1, fc2 = (
        np.broadcast_to(np.float16(0), shape)
        for shape in ((hidden, spec.d_model), (spec.n_neurons, hidden))
    )
    bias_N = np.zeros(spec.n_neurons, np.float32) if biased else None
    return (PredictorLayer(fc1, fc2, bias_N, True, 0.0),) * spec.n_layers


def signs(spec: ModelSpec) -> tuple[Any, ...]:
    """Likewise, of one bit a weight."""
    words = np.broadcast_to(np.uint64(0), (spec.n_neurons, -(-spec.d_model // 64)))
    one_N, one_D = np.ones(spec.n_neurons, np.float32), np.ones(spec.d_model, np.float32)
    return (SignLayer(words, one_N, one_N, one_D, 8, 0.0),) * spec.n_layers


@dataclass(frozen=True)
class Case:
    """One executor: a model, who owns what, where modules are.

    Args:
        spec: the model.
        owned_L: neurons of each layer that the GPU owns.
        context: positions of the KV cache.
        max_batch: tokens of a pass.
        early: layers that predictions are ahead.
        audit_every: one in so many neurons is audited; 0: none.
        kv_bytes: of an element of the KV cache.
        layers: of the predictor; empty: none.
        int8: the predictor's matrices are quantised.
        on_host: modules that are not on the device, by name.
        bus_L: of the owned neurons, how many are read over the bus; empty: none.
        prompt_rows: tokens of a dense prompt pass.
        remote: the predictor has a process of its own.
    """

    spec: ModelSpec
    owned_L: tuple[int, ...]
    context: int = 512
    max_batch: int = 32
    early: int = 0
    audit_every: int = 0
    kv_bytes: int = 4
    layers: tuple[Any, ...] = ()
    int8: bool = False
    on_host: frozenset[str] = field(default_factory=frozenset)
    bus_L: tuple[int, ...] = ()
    prompt_rows: int = 0
    remote: bool = False

    @property
    def shape(self) -> GpuShape:
        """As the layout is asked."""
        return model_shape(
            *(self.spec, self.context, self.max_batch),
            tuple(self._layer(index) for index in range(self.spec.n_layers)),
            kv_bytes=self.kv_bytes,
            head_on_host="head" in self.on_host,
            audit_every=self.audit_every,
            predictor_i8=self.int8,
            remote_predictor=self.remote,
            prompt_rows=self.prompt_rows,
        )

    @property
    def bytes(self) -> int:
        """Device memory of the executor."""
        taken = self.shape.executor()
        return taken.device + taken.mailbox

    def _layer(self, index: int) -> LayerShape:
        kinds = (kind for kind in PARTS if f"{kind}.{index}" in self.on_host)
        bus = self.bus_L[index] if self.bus_L else 0
        predictor: dict[str, Any] = {}
        if self.layers:
            predictor = predictor_shape(self.layers[index], self.int8)
            predictor["predicted_at"] = max(0, index - self.early)
        owned = self.owned_L[index]
        return LayerShape(owned, owned - bus, sum(PARTS[kind] for kind in kinds), **predictor)
