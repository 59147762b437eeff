"""Typed face of the layout of GPU memory (native/layout/gpu_layout.h): bytes that executors take.

A GPU executor hands its memory out by the same functions; asking needs neither a GPU nor a plug-in.
"""

from dataclasses import dataclass, replace
from typing import Any

from hotcold.native.abi.generated import HOT_CHUNKS
from hotcold.native.bindings._ffi import copied, ffi, lib, new


@dataclass(frozen=True)
class LayerShape:
    """hc_layout_layer: what the memory of one layer depends on; abi/layout.h says what each is."""

    owned: int
    resident: int = 0
    host_parts: int = 0
    predicted_at: int = -1
    form: str = "matrices"
    bias: bool = False
    column: bool = False
    folds_norm: bool = False
    hidden: int = 0
    fc_bytes: int = 0
    record_bytes: int = 0


@dataclass(frozen=True)
class LayoutBytes:
    """hc_layout_bytes of one process: in device memory, in a mailbox, pinned, lost by rounding."""

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
    """hc_layout_shape: what the memory of a GPU executor depends on, as in abi/layout.h."""

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
    keeps_both: bool = False
    widens: bool = False
    slots: int = 1

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
        out, values = ffi.new("hc_layout_bytes *"), dict(vars(self))
        values["layers_L"] = [vars(layer) for layer in values.pop("layers")]
        count(new("hc_layout_shape", **values), out)
        return copied(out, LayoutBytes)
