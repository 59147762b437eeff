"""Where every tensor lies in a bundle's weights.bin: a pure function of the ModelSpec.

    layers.0.attention_norm | .qkv | .o | .ffn_norm | .neurons | layers.1 ...
    | embed | head | final_norm

Where a model has them: a layer norm's weight is followed by its bias (attention_norm_bias), .qkv
and .o by theirs, .qkv by the norms of its heads (q_norm, k_norm), .neurons by .ffn_bias (of the
down matrix; the gate's are in the records), embed by positions and project_in, head by project_out.

Used by the writer and by the reader, which compares what a bundle claims with what its spec
implies, so that no offset from a file is ever trusted. Matrix rows are contiguous and unpadded.
"""

from dataclasses import dataclass
from typing import Any

from hotcold.runtime.model.block import NORMS, norms
from hotcold.runtime.model.neurons import NeuronRecord, round_up
from hotcold.runtime.model.spec import DTYPE_BYTES, ModelSpec

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
    d, dtype, width = spec.d_model, spec.dtype, spec.embed_width
    record_bytes = NeuronRecord.for_spec(spec).bytes
    projected, qkv = spec.embed_dim is not None, spec.q_dim + 2 * spec.kv_dim
    norm_bias, e = spec.norm == "layer", (spec.head_dim,)
    attention_norm, ffn_norm = (name in norms(spec.block) for name in NORMS)
    tensors: list[tuple[str, tuple[int, ...], str, bool]] = []
    for i in range(spec.n_layers):
        layer = f"layers.{i}"
        tensors += [
            (f"{layer}.attention_norm", (d,), "float32", attention_norm),
            (f"{layer}.attention_norm_bias", (d,), "float32", attention_norm and norm_bias),
            (f"{layer}.qkv", (qkv, d), dtype, True),
            (f"{layer}.qkv_bias", (qkv,), "float32", "qkv" in spec.biased),
            *((f"{layer}.{head}_norm", e, "float32", spec.qk_norm) for head in "qk"),
            *(
                (f"{layer}.{head}_norm_bias", e, "float32", spec.qk_norm and norm_bias)
                for head in "qk"
            ),
            (f"{layer}.o", (d, spec.q_dim), dtype, True),
            (f"{layer}.o_bias", (d,), "float32", "o" in spec.biased),
            (f"{layer}.ffn_norm", (d,), "float32", ffn_norm),
            (f"{layer}.ffn_norm_bias", (d,), "float32", ffn_norm and norm_bias),
            (f"{layer}.neurons", (spec.n_neurons, record_bytes), "uint8", True),
            (f"{layer}.ffn_bias", (d,), "float32", spec.biases),
        ]
    tensors += [
        ("embed", (spec.vocab_size, width), dtype, True),
        ("positions", (spec.max_context, d), dtype, spec.positions == "learned"),
        ("project_in", (d, width), dtype, projected),
        ("head", (spec.vocab_size, width), dtype, not spec.tied),
        ("project_out", (width, d), dtype, projected),
        ("final_norm", (d,), "float32", spec.final_norm),
        ("final_norm_bias", (d,), "float32", spec.final_norm and norm_bias),
    ]
    return [(name, shape, kind) for name, shape, kind, present in tensors if present]


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
