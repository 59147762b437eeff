"""What a GPU executor holds beside weights and KV, before anybody owns a neuron.

The layout of GPU memory (native/layout/gpu_layout.c) is asked about the worst placement: every
neuron is the GPU's, every module and record in host memory. What then lies on the device is there
under any plan. Called by gpu.py and `hotcold roofline`; knows model shapes and no device.
"""

from collections.abc import Sequence
from typing import Any

from hotcold.native.abi.names import PARTS
from hotcold.native.bindings.gpu_layout import GpuShape, LayerShape
from hotcold.runtime.model.block import keeps_both
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec

ON_HOST = sum(PARTS.values())


def sizes(spec: ModelSpec, context: int) -> dict[str, Any]:
    """A model's sizes by their names in the kernels, with positions of a KV cache."""
    return {
        "heads": spec.n_heads,
        "kv_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "d": spec.d_model,
        "n": spec.n_neurons,
        "vocab": spec.vocab_size,
        "context": context,
        "embed_dim": spec.embed_width,
    }


def model_shape(
    spec: ModelSpec,
    context: int,
    max_batch: int,
    layers: tuple[LayerShape, ...] = (),
    **more: Any,  # noqa: ANN401 - as GpuShape has them
) -> GpuShape:
    """A model's part of what the layout asks for; more: of GpuShape.

    No layers: as the worst placement has them, nothing predicted.
    """
    worst = (LayerShape(spec.n_neurons, host_parts=ON_HOST),) * spec.n_layers
    more = {"kv_bytes": 4, "head_on_host": not layers, **more}
    return GpuShape(
        **sizes(spec, context),
        n_layers=spec.n_layers,
        element_bytes=spec.element_bytes,
        record_bytes=NeuronRecord.for_spec(spec).bytes,
        widens=spec.neuron_format == "int8",
        norm_bias=spec.norm == "layer",
        biases=spec.biases,
        gated=spec.gated,
        final_norm=spec.final_norm,
        rotary=spec.positions == "rotary",
        projected=spec.embed_dim is not None,
        keeps_both=keeps_both(spec.block),
        max_batch=max_batch,
        layers=layers or worst,
        **more,
    )


def predicted_layers(
    spec: ModelSpec, predictors: Sequence[Any], early: int, int8: bool = False
) -> tuple[LayerShape, ...]:
    """Layers of the worst placement, each predicted; none without predictors (native forms).

    early: layers that predictions are ahead, at most. int8: their matrices are quantised by row.
    """
    return tuple(
        LayerShape(
            spec.n_neurons,
            host_parts=ON_HOST,
            predicted_at=max(0, index - early),
            **predictor_shape(layer, int8),
        )
        for index, layer in enumerate(predictors)
    )


def predictor_shape(layer: Any, int8: bool = False) -> dict[str, Any]:  # noqa: ANN401 - by form
    """The fields of LayerShape that describe a predictor's layer; of a form no GPU runs, none."""
    found: dict[str, Any]
    if layer.form == "sign":
        found = {"form": "sign", "column": layer.column_D is not None}
    elif layer.form == "matrices":
        itemsize = 1 if int8 else int(layer.fc1.itemsize)
        found = {"folds_norm": True, "hidden": int(layer.fc1.shape[0]), "fc_bytes": itemsize}
    else:
        return {}
    return {**found, "bias": layer.bias_N is not None}
