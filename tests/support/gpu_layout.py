"""What Model::lay_out (native/cuda/memory/model.cu) takes of a device, written down once more in
Python.

Without a dense prompt form. The arithmetic of runtime/engine/gpu.py is held against this on
machines without a GPU; tests/cuda/test_gpu_memory.py holds this against what a GPU executor
reports.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.engine.gpu_memory import ATTENTION_PIECE, HOT_CHUNKS
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec


@dataclass
class Arena:
    """Parts of one allocation, each on a multiple of 256 bytes."""

    used: int = 0

    def take(self, size: int, count: int, there: bool = True) -> None:
        if there:
            self.used += -(-count * size // 256) * 256


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

    @property
    def bytes(self) -> int:
        """Bytes of the device's allocation."""
        device = Arena()
        self._tables(device)
        for index in range(self.spec.n_layers):
            self._layer(device, index)
        self._scratch(device)
        return device.used

    @property
    def bucket(self) -> int:
        """Largest batch of a graph."""
        return 1 << (self.max_batch - 1).bit_length()

    def _at(self, device: Arena, module: str) -> Arena:
        return Arena() if module in self.on_host else device

    def _tables(self, device: Arena) -> None:
        m, S, B = self.spec, HOT_CHUNKS, self.bucket
        L, D, E = m.n_layers, m.d_model, m.embed_width
        for size, count in ((4, L * m.n_neurons), (4, 4 * L), (4, 4 * S * L), (144, 1)):
            device.take(size, count)
        device.take(4, B * m.vocab_size)
        device.take(4, D, m.final_norm)
        device.take(4, D, m.final_norm and m.norm == "layer")
        for _ in ("cos", "sin"):
            device.take(4, self.context * m.head_dim // 2, m.positions == "rotary")
        self._at(device, "head").take(m.element_bytes, m.vocab_size * E)
        device.take(m.element_bytes, E * D, m.embed_dim is not None)
        for size, count in ((4, 1), (4, L), (8, 8 * (L + 1))):
            device.take(size, count)
        rows, pieces = B * m.n_heads, -(-self.context // ATTENTION_PIECE)
        device.take(4, rows)
        device.take(4, rows * pieces * m.head_dim, pieces > 1)
        device.take(8, rows * pieces, pieces > 1)

    def _layer(self, device: Arena, index: int) -> None:
        m, S = self.spec, HOT_CHUNKS
        D, N, e, qkv = m.d_model, m.n_neurons, m.element_bytes, m.q_dim + 2 * m.kv_dim
        for _ in ("attention", "ffn"):
            device.take(4, D)
            device.take(4, D, m.norm == "layer")
        for count in (qkv, D, D):
            device.take(4, count, m.biases)
        attention, kv = (self._at(device, f"{kind}.{index}") for kind in ("attention", "kv"))
        attention.take(e, qkv * D)
        attention.take(e, m.q_dim * D)
        device.take(NeuronRecord.for_spec(m).record_bytes, self.owned_L[index])
        device.take(8, self.owned_L[index])
        for _ in ("k", "v"):
            kv.take(self.kv_bytes, m.kv_dim * self.context)
        for count in (-(-N // 32), -(-N // 32), 1, S + 1, S + 1):
            device.take(4, count)
        if self.layers:
            self._predictor(device, index)

    def _predictor(self, device: Arena, index: int) -> None:
        layer, N = self.layers[index], self.spec.n_neurons
        home = self._at(device, f"predictor.{index}")
        device.take(4, N, layer.bias_N is not None)
        if layer.form == "sign":
            home.take(8, layer.signs_NW.size)
            device.take(4, N)
            device.take(4, self.spec.d_model)
            return
        size = 1 if self.int8 else layer.fc1.itemsize
        home.take(size, layer.fc1.size)
        home.take(size, layer.fc2.size)
        for count in (layer.fc1.shape[0], N):
            device.take(4, count, self.int8)

    def _scratch(self, device: Arena) -> None:
        m, S, B = self.spec, HOT_CHUNKS, self.bucket
        D, N, qkv = m.d_model, m.n_neurons, m.q_dim + 2 * m.kv_dim
        hidden = max((x.fc1.shape[0] for x in self.layers if x.form == "matrices"), default=1)
        for count in (D, D, qkv, m.q_dim, hidden, S * D):
            device.take(4, B * count)
        device.take(4, B * m.embed_width, m.embed_dim is not None)
        if any(layer.form == "sign" for layer in self.layers):
            device.take(8, B * 8 * -(-D // 64))
            device.take(4, B)
        audited = N // self.audit_every + 1 if self.audit_every else 0
        entries = max(1, *self.owned_L) + audited
        device.take(4, entries * B)
        for _ in range(self.early + 1):
            for count in (entries, entries, 1, S + 1, 2):
                device.take(4, count)
        for _ in ("ids", "members"):
            device.take(4, N)


def owned_of(device_LN: NDArray[np.int8]) -> tuple[int, ...]:
    """Neurons that the GPU owns, by layer."""
    return tuple(int(count) for count in (device_LN == 0).sum(axis=1))
