"""ModelSpec: the shapes of a language model and the kinds of its layers, nothing else.

Read from a checkpoint by an architecture, stored in a bundle, used everywhere. Holds no weights.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

import numpy as np

from hotcold.native.abi import names as abi
from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import ACTIVATION_ROWS, ActivationRow
from hotcold.runtime.model.block import PRE_NORM, Block, Operator

DType = Literal["float32", "float16", "bfloat16"]
NEURON_DTYPES = tuple(word for word in abi.DTYPES if word not in abi.WEIGHT_DTYPES)
DTYPE_BYTES: dict[str, int] = {name: abi.DTYPE_BYTES[name] for name in abi.WEIGHT_DTYPES}
Norm = Literal["rms", "layer"]
Activation = Literal["relu", "relu2", "fatrelu", "relu both", "silu", "gelu", "gelu tanh"]
AttentionBiases = Literal["", "qkv", "qkv o"]
Positions = Literal["rotary", "learned"]


def split_dtype(word: str, plain: DType) -> tuple[DType, str | None]:
    """The dtype and neuron_dtype that a dtype option stands for.

    `plain` is the dtype of the other matrices where the word is a format of neurons alone.
    """
    return (plain, word) if word in NEURON_DTYPES else (cast(DType, word), None)


@dataclass(frozen=True)
class ModelSpec:
    """Shapes of a decoder with ReLU-like feed-forward layers, gated (ReGLU) or not.

    Args:
        architecture: registry name of the architecture, "llama" for example.
        n_layers: L, decoder layers.
        d_model: D, width of the residual stream.
        n_neurons: N, feed-forward neurons of a layer.
        n_kv_heads: key and value heads; divides n_heads (grouped-query attention).
        head_dim: elements of a head, even with rotary positions.
        vocab_size: V, rows of the embedding.
        rope_theta: base of the rotary frequencies; 0 with learned positions.
        rope_scaling: None, or the checkpoint's scaling entry (rotary.py), nothing left out.
        tied: the head is the embedding.
        dtype: dtype of the stored matrices (norm weights and biases are always float32).
        bos_ids: ids put before a prompt by the tokenizer's own template; informational.
        eos_ids: ids that end a generation.
        norm: "rms", or "layer": mean removed, and a bias beside the weight.
        gated: act(g . x) (u . x) d: a neuron is a gate row, an up row and a down column; or not,
            act(g . x + b) d: a row of fc1 (called gate row throughout), a column of fc2 (down
            column), and fc1's bias.
        activation: act, a row of native/abi/activations.h.
        activation_threshold: of its pre-activations; above 0 for "fatrelu", 0 for others.
        positions: "rotary", or "learned": a row a position, added to the embedding.
        biases: q, k, v, o, fc1 and fc2 have biases (not gated only).
        attention_biases: where `biases` does not hold: "qkv": of q, k and v; "qkv o": of o, too.
        qk_norm: each head's query and key goes through a norm, like the others, before it turns.
        embed_scale: what embeddings are multiplied by.
        block: the operators of a layer (block.py).
        final_norm: there is a norm before the head.
        embed_dim: width of embedding and head where they are projected to and from d_model.
        attention_window: positions that a token attends to, the last ones, its own included; None:
            all.
        rotary_dim: elements of a head that turn, even; the others keep their values, see rotary.py;
            None: all.
        neuron_dtype: format of the neurons' rows where it is not `dtype`: "int8".
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
    norm: Norm = "rms"
    gated: bool = True
    activation: Activation = "relu"
    activation_threshold: float = 0.0
    positions: Positions = "rotary"
    biases: bool = False
    block: Block = PRE_NORM
    final_norm: bool = True
    embed_dim: int | None = None
    attention_window: int | None = None
    rotary_dim: int | None = None
    neuron_dtype: str | None = None
    attention_biases: AttentionBiases = ""
    qk_norm: bool = False
    embed_scale: float = 1.0

    @property
    def biased(self) -> tuple[str, ...]:
        """Which of attention's matrices have a bias, of "qkv" and "o"."""
        return ("qkv", "o") if self.biases else tuple(self.attention_biases.split())

    @property
    def neuron_format(self) -> str:
        """Format of the neurons' rows; as a dtype option it makes this model of its source."""
        return self.neuron_dtype or self.dtype

    def stored(self, neurons: str | None) -> "ModelSpec":
        """The same model with its neurons in another format; None: as it is."""
        if neurons is None:
            return self
        return replace(self, neuron_dtype=None if neurons == self.dtype else neurons)

    @property
    def row_bytes(self) -> int:
        """Bytes that reading a row of a neuron takes, scales included."""
        return FORMATS[self.neuron_format].read_bytes(self.d_model)

    @property
    def element_bytes(self) -> int:
        """Bytes of one stored weight, of neurons apart."""
        return DTYPE_BYTES[self.dtype]

    @property
    def q_dim(self) -> int:
        """Elements of all query heads."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Elements of all key (or value) heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def embed_width(self) -> int:
        """Elements of a row of the embedding and of the head."""
        return self.embed_dim or self.d_model

    @property
    def neuron_rows(self) -> int:
        """Rows of D elements in a neuron: gate, up and down, or gate and down."""
        return 3 if self.gated else 2

    @property
    def fires_all(self) -> bool:
        """Whether its activation is dense: every neuron fires, whatever its gate is."""
        return bool(self._row.fires(-1.0, 0.0))

    @property
    def _row(self) -> ActivationRow:
        return ACTIVATION_ROWS[abi.ACTIVATIONS[self.activation]]

    @property
    def least_firing(self) -> float:
        """The lowest gate pre-activation in float32 that fires."""
        threshold, lowest = np.float32(self.activation_threshold), np.finfo(np.float32).min
        if self.fires(lowest):
            return float(lowest)
        fires = self.fires(threshold)
        return float(threshold if fires else np.nextafter(threshold, np.float32(np.inf)))

    def fires(self, gates: Any) -> Any:  # noqa: ANN401 - array or tensor
        """Where neurons fire, of their gate pre-activations: numbers, an array or a tensor."""
        return self._row.fires(gates, self.activation_threshold)

    def gate_values(self, gates: Any) -> Any:  # noqa: ANN401 - array or tensor
        """Gates behind the activation, of their pre-activations: 0 where a neuron does not fire."""
        return self._row.value(gates) * self.fires(gates)

    def up_values(self, ups: Any) -> Any:  # noqa: ANN401 - array or tensor
        """What gates are multiplied by, of the up projections."""
        return ups * (ups > 0) if self._row.both else ups

    def to_json(self) -> dict[str, Any]:
        """Plain data for bundle.json.

        Fields from `norm` on are left out where they have their defaults: a field that is added
        later then changes no checksum of a model that does not use it.
        """
        data, late = asdict(self), False
        for field in fields(self):
            late = late or field.name == "norm"
            if late and getattr(self, field.name) == field.default:
                del data[field.name]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelSpec":
        """Inverse of to_json; a KeyError, TypeError or ValueError: another version wrote it."""
        if unknown := sorted({*data} - {field.name for field in fields(cls)}):
            raise ValueError(f"this version knows no {', '.join(unknown)} of a model")
        tuples = {name: tuple(data[name]) for name in ("bos_ids", "eos_ids")}
        if "block" in data:
            tuples["block"] = tuple(Operator(**one) for one in data["block"])
        return cls(**{**data, **tuples})
