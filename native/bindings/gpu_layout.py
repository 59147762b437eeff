"""Typed face of the layout of GPU memory (native/layout/gpu_layout.h): bytes that executors take.

A GPU executor hands its memory out by the same functions; asking needs neither a GPU nor a plug-in.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from hotcold.native.bindings._ffi import ffi, lib

HOT_CHUNKS: int = lib.HC_HOT_CHUNKS
ATTENTION_PIECE: int = lib.HC_ATTENTION_PIECE
GRANULE: int = lib.HC_DEVICE_GRANULE


@dataclass(frozen=True)
class LayerShape:
    """hc_layout_layer: what the memory of one layer depends on.

    Args:
        owned: neurons that the GPU computes.
        resident: of those, with their records in device memory; the others are read over the bus.
        host_parts: PARTS (abi/names.py) of the modules that stay in host memory.
        predicted_at: layer whose input the prediction reads; -1: not predicted.
        sign: the predictor has one bit a weight; else two matrices.
        bias: it has a bias a neuron.
        column: it has a factor an input, of the form sign.
        folds_norm: its first product folds the norm of the input in.
        hidden: rows of its first matrix.
        fc_bytes: of an element of its matrices, as uploaded.
    """

    owned: int
    resident: int = 0
    host_parts: int = 0
    predicted_at: int = -1
    sign: bool = False
    bias: bool = False
    column: bool = False
    folds_norm: bool = False
    hidden: int = 0
    fc_bytes: int = 0


@dataclass(frozen=True)
class LayoutBytes:
    """hc_layout_bytes of one process.

    Args:
        device: device memory.
        mailbox: and as much again, which the predictor's process maps.
        host: pinned host memory of modules that stay there.
        rounding: by which modules and records take more than their bytes in device memory, at most.
    """

    device: int
    mailbox: int
    host: int
    rounding: int

    @property
    def reserve(self) -> int:
        """Device memory beside what may move, of a process all of whose modules are on the host."""
        return self.device + self.mailbox + self.rounding


@dataclass(frozen=True)
class GpuShape:
    """hc_layout_shape: what the memory of a GPU executor depends on.

    Args:
        n_layers: L.
        heads: query heads.
        kv_heads: key heads.
        head_dim: elements of a head.
        element_bytes: of a weight.
        kv_bytes: of an element of the KV cache.
        d: width of the residual stream.
        n: neurons of a layer.
        vocab: rows of the head.
        context: positions of the KV cache.
        embed_dim: width of the head.
        record_bytes: of a neuron.
        norm_bias: norms have biases.
        biases: products have biases.
        gated: neurons have up rows.
        final_norm: there is a norm before the head.
        rotary: positions are rotary.
        projected: the head is of another width than the stream.
        max_batch: tokens of a pass.
        layers: one entry a layer.
        head_on_host: the head stays in host memory.
        n_chunks: partial sums of the hot FFN.
        audit_every: one in so many neurons is looked at; 0: none.
        predictor_i8: predictor matrices have a scale a row.
        remote_predictor: the predictor has a process and memory of its own.
        prompt_rows: tokens of a dense prompt pass; 0: there is none.
    """

    n_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int
    kv_bytes: int
    d: int
    n: int
    vocab: int
    context: int
    embed_dim: int
    record_bytes: int
    norm_bias: bool
    biases: bool
    gated: bool
    final_norm: bool
    rotary: bool
    projected: bool
    max_batch: int
    layers: tuple[LayerShape, ...]
    head_on_host: bool = False
    n_chunks: int = HOT_CHUNKS
    audit_every: int = 0
    predictor_i8: bool = False
    remote_predictor: bool = False
    prompt_rows: int = 0

    def executor(self) -> LayoutBytes:
        """What the GPU executor takes."""
        return self._ask(lib.hc_layout_executor)

    def predictor(self) -> LayoutBytes:
        """What a predictor's own process takes."""
        return self._ask(lib.hc_layout_predictor)

    def with_rows(self, prompt_rows: int) -> "GpuShape":
        """The same with dense prompt passes of so many tokens."""
        return replace(self, prompt_rows=prompt_rows)

    def _ask(self, count: Any) -> LayoutBytes:  # noqa: ANN401 - a C function
        if len(self.layers) != self.n_layers:
            raise ValueError(
                f"{len(self.layers)} layers are described, the model has {self.n_layers}"
            )
        layers = ffi.new("hc_layout_layer[]", self.n_layers)
        for c_layer, layer in zip(layers, self.layers, strict=True):
            _fill(c_layer, layer, "sign")
            c_layer.form = lib.HC_PREDICT_SIGN if layer.sign else lib.HC_PREDICT_MATRICES
        shape, out = ffi.new("hc_layout_shape *"), ffi.new("hc_layout_bytes *")
        _fill(shape, self, "layers")
        shape.layers_L = layers
        count(shape, out)
        return LayoutBytes(out.device, out.mailbox, out.host, out.rounding)


def _fill(c: Any, values: LayerShape | GpuShape, but: str) -> None:  # noqa: ANN401 - a C struct
    """Copy the fields into those of the same names, except one."""
    for field in fields(values):
        if field.name != but:
            setattr(c, field.name, getattr(values, field.name))
