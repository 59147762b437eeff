"""Where every tensor lies in a bundle's weights.bin: a pure function of the ModelSpec.

    layers.0.attention_norm | .qkv | .o | .ffn_norm | .neurons | layers.1 ...
    | embed | head | final_norm

Used by the writer and by the reader, which compares what a bundle claims with what its spec
implies, so that no offset from a file is ever believed. Matrix rows are contiguous and unpadded.
"""

from dataclasses import dataclass
from typing import Any

from hotcold.runtime.model import DTYPE_BYTES, ModelSpec
from hotcold.runtime.neurons import NeuronRecord, round_up

TENSOR_ALIGNMENT = 64
NEURON_ALIGNMENT = 4096


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of weights.bin.

    Args:
        offset: bytes from the start of the file, a multiple of 64 (neurons: 4096).
        shape: rows first; neurons: (N, record_bytes).
        dtype: "float32", "float16", "bfloat16", or "uint8" for neuron records.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        size = 1 if self.dtype == "uint8" else DTYPE_BYTES[self.dtype]
        for n in self.shape:
            size *= n
        return size

    def to_json(self) -> dict[str, Any]:
        """Plain data for bundle.json."""
        return {"offset": self.offset, "shape": list(self.shape), "dtype": self.dtype}


def _tensors(spec: ModelSpec) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of all tensors, in file order."""
    d, dtype = spec.d_model, spec.dtype
    record_bytes = NeuronRecord.for_spec(spec).record_bytes
    tensors: list[tuple[str, tuple[int, ...], str]] = []
    for i in range(spec.n_layers):
        tensors += [
            (f"layers.{i}.attention_norm", (d,), "float32"),
            (f"layers.{i}.qkv", (spec.q_dim + 2 * spec.kv_dim, d), dtype),
            (f"layers.{i}.o", (d, spec.q_dim), dtype),
            (f"layers.{i}.ffn_norm", (d,), "float32"),
            (f"layers.{i}.neurons", (spec.n_neurons, record_bytes), "uint8"),
        ]
    tensors.append(("embed", (spec.vocab_size, d), dtype))
    if not spec.tied:
        tensors.append(("head", (spec.vocab_size, d), dtype))
    tensors.append(("final_norm", (d,), "float32"))
    return tensors


def layout(spec: ModelSpec) -> tuple[dict[str, TensorEntry], int]:
    """All tensors by name in file order, and the size of weights.bin in bytes."""
    entries: dict[str, TensorEntry] = {}
    end = 0
    for name, shape, dtype in _tensors(spec):
        alignment = NEURON_ALIGNMENT if name.endswith(".neurons") else TENSOR_ALIGNMENT
        entry = TensorEntry(round_up(end, alignment), shape, dtype)
        entries[name] = entry
        end = entry.offset + entry.size
    return entries, round_up(end, NEURON_ALIGNMENT)
