"""ModelSpec: the shapes of a language model and the kinds of its layers, nothing else.

Read from a checkpoint by `formats`, stored in a bundle, used by everyone. Holds no weights.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

DType = Literal["float32", "float16", "bfloat16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class ModelSpec:
    """Shapes of a decoder with gated ReLU feed-forward layers (ReGLU).

    Args:
        architecture: registry name of the architecture, "llama".
        n_layers: L, decoder layers.
        d_model: D, width of the residual stream.
        n_neurons: N, feed-forward neurons of a layer (gate row, up row and down column each).
        n_heads: query heads.
        n_kv_heads: key and value heads; divides n_heads (grouped-query attention).
        head_dim: elements of a head, even.
        vocab_size: V, rows of the embedding.
        max_context: positions the model was made for.
        norm_eps: epsilon of the RMS norms.
        rope_theta: base of the rotary frequencies.
        rope_scaling: None, or the checkpoint's scaling entry ("linear", "llama3").
        tied: the head is the embedding.
        dtype: dtype of the stored matrices (norm weights are always float32).
        bos_ids: ids put before a prompt by the tokenizer's own template; informational.
        eos_ids: ids that end a generation.
    """

    architecture: str
    n_layers: int
    d_model: int
    n_neurons: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    norm_eps: float
    rope_theta: float
    tied: bool
    dtype: DType
    rope_scaling: dict[str, Any] | None = None
    bos_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()

    @property
    def element_bytes(self) -> int:
        """Bytes of one stored weight."""
        return DTYPE_BYTES[self.dtype]

    @property
    def q_dim(self) -> int:
        """Elements of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Elements of all key (or value) heads."""
        return self.n_kv_heads * self.head_dim

    def to_json(self) -> dict[str, Any]:
        """Plain data for bundle.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelSpec":
        """Inverse of to_json; a KeyError or TypeError means another version wrote it."""
        tuples = {name: tuple(data[name]) for name in ("bos_ids", "eos_ids")}
        return cls(**{**data, **tuples})
