"""Work: what each operator of a model reads and computes. Counted here and nowhere else.

The work of an operator is a handful of coefficients, of bytes and of operations alike:

    fixed + position * cached positions + proposed * proposed neurons + fired * firing neurons

Bytes are of a pass: weights and keys are read once for all its tokens, a neuron's rows once where
several tokens of the pass need it. Operations are of a token, a multiply-add being two of them.
Steps carry both (program.py), so that the native counters add what their steps say; nodes of a Dag
carry them for authors of schedules; placement problems, the bound of a token and the predictor
`auto` are made of them.

Not in it: what is written, activations, and the rows of embedding and positions that tokens look up
(one a token). Of an activation that may shut a neuron by its up row, too, all down rows count.
"""

from dataclasses import dataclass, replace
from typing import Any

from hotcold.native.abi.names import DTYPE_BYTES
from hotcold.runtime.model import block
from hotcold.runtime.model.neurons import ROWS, NeuronRecord
from hotcold.runtime.model.spec import ModelSpec

FLOAT32 = 4  # norms, biases, scales
GATE = ("gate", "bias")  # the parts of a neuron's record that say whether it fires


@dataclass(frozen=True)
class Terms:
    """Coefficients of bytes or operations, by hc_term (native/abi/hotcold.h)."""

    fixed: int = 0
    position: int = 0
    proposed: int = 0
    fired: int = 0

    def at(self, positions: float = 0, proposed: float = 0, fired: float = 0) -> float:
        """The sum for cached positions, neurons whose gates are evaluated, neurons that fire."""
        return (
            self.fixed + self.position * positions + self.proposed * proposed + self.fired * fired
        )


@dataclass(frozen=True)
class Work:
    """Bytes that a pass reads for an operator, operations that a token takes of it."""

    bytes: Terms = Terms()
    flops: Terms = Terms()


@dataclass(frozen=True)
class ModelWork:
    """The work of every operator of a model, as a deployment computes it.

    Args:
        kv_bytes: of an element of the KV cache.
        predict_L: work of each layer's prediction (`predict_work`); empty: nothing is predicted.
        gates_sent: predictions bring the gates of all neurons: executors evaluate none.
        up_with_gate: kernels of hot neurons read the up row of a proposed neuron beside its gate
            row, whether or not it fires: a GPU's, where a layer is predicted.
    """

    spec: ModelSpec
    kv_bytes: int = 4
    predict_L: tuple[Work, ...] = ()
    gates_sent: bool = False
    up_with_gate: bool = False

    @property
    def norm_bytes(self) -> int:
        """Weights of one norm."""
        return self.spec.d_model * FLOAT32 * (2 if self.spec.norm == "layer" else 1)

    def norms(self, step: block.Step) -> int:
        """Weights of the norms that a step of a layer computes."""
        found = zip(self.spec.block, block.steps(self.spec.block), strict=True)
        return self.norm_bytes * sum(one.kind == "norm" and at == step for one, at in found)

    @property
    def embed(self) -> Work:
        """Projection of the embedding, where it has another width."""
        return self._projection

    @property
    def input(self) -> Work:
        """The feed-forward part's input, in blocks that hand it over before attention."""
        return Work(Terms(self.norms("input")))

    @property
    def attention(self) -> Work:
        """Norms, projections and attention."""
        spec = self.spec
        rows = spec.q_dim + 2 * spec.kv_dim
        weights = (rows + spec.q_dim) * spec.d_model
        biased = rows * ("qkv" in spec.biased) + spec.d_model * ("o" in spec.biased)
        head_norms = 2 * spec.head_dim * (1 + (spec.norm == "layer")) * spec.qk_norm
        fixed = weights * spec.element_bytes + self.norms("attention")
        fixed += (biased + head_norms) * FLOAT32
        keys = 2 * spec.kv_dim * self.kv_bytes
        return Work(Terms(fixed, keys), Terms(2 * weights, 4 * spec.q_dim))

    def stored(self, neurons: str | None) -> "ModelWork":
        """Where neurons are in a format of their own, for nodes of whoever owns them."""
        return replace(self, spec=self.spec.stored(neurons))

    def of(self, kind: str, layer: int) -> Work:
        """The work of a node of the graph (dag.py)."""
        if kind == "predict":
            return self.predict_L[layer] if self.predict_L else Work()
        made: Work = getattr(self, "hot" if kind == "fetch" else kind)
        return made

    @property
    def neurons(self) -> Work:
        """Neurons of a layer, gate first."""
        parts, row = NeuronRecord.for_spec(self.spec).parts, self.spec.row_bytes
        size = {part.name: row if part.name in ROWS else part.bytes for part in parts}
        gate, flops = sum(size[name] for name in GATE if name in size), 2 * self.spec.d_model
        return Work(
            Terms(proposed=gate, fired=sum(size.values()) - gate),
            Terms(proposed=flops, fired=(self.spec.neuron_rows - 1) * flops),
        )

    @property
    def cold(self) -> Work:
        """The same, as the CPU executor computes its share."""
        return _without_gates(self.neurons) if self.gates_sent else self.neurons

    @property
    def hot(self) -> Work:
        """The same, as the GPU executor computes its share."""
        if not self.up_with_gate or self.spec.neuron_rows < 3:
            return self.cold
        return Work(_up_with_gate(self.cold.bytes), _up_with_gate(self.cold.flops))

    @property
    def merge(self) -> Work:
        """The sum of both shares: the down matrix's bias, and norms behind it."""
        return Work(Terms(self.ffn_bias_bytes + self.norms("merge")))

    @property
    def ffn_bias_bytes(self) -> int:
        """The down matrix's bias of a layer."""
        return self.spec.d_model * FLOAT32 * self.spec.biases

    @property
    def head(self) -> Work:
        """Last norm, projection where there is one, head."""
        spec, projection = self.spec, self._projection
        weights = spec.vocab_size * spec.embed_width
        norm = self.norm_bytes * spec.final_norm
        fixed = weights * spec.element_bytes + projection.bytes.fixed + norm
        return Work(Terms(fixed), Terms(2 * weights + projection.flops.fixed))

    @property
    def _projection(self) -> Work:
        spec = self.spec
        weights = spec.d_model * (spec.embed_dim or 0)
        return Work(Terms(weights * spec.element_bytes), Terms(2 * weights))


def _without_gates(work: Work) -> Work:
    return Work(Terms(fired=work.bytes.fired), Terms(fired=work.flops.fired))


def _up_with_gate(terms: Terms) -> Terms:
    up = terms.fired // 2
    return Terms(proposed=terms.proposed + up, fired=terms.fired - up)


# ---- predictors, by their native form (runtime/predictors/predictor_forms.py)


def matrices_bytes(spec: ModelSpec, width: int, dtype: str, biased: bool = False) -> int:
    """Bytes of a predictor of two matrices; in int8 with a scale a row."""
    weights = width * (spec.d_model + spec.n_neurons) * DTYPE_BYTES[dtype]
    scales = FLOAT32 * (width + spec.n_neurons) if dtype == "int8" and width else 0
    return weights + scales + FLOAT32 * spec.n_neurons * biased


def predictor_bytes(spec: ModelSpec, layer: Any, int8: bool = False) -> int:  # noqa: ANN401 - by form
    """Bytes that a predictor's layer takes; int8: its matrices are quantised by row."""
    if not int8 or layer.form != "matrices":
        return int(layer.bytes)
    return matrices_bytes(spec, int(layer.fc1.shape[0]), "int8", layer.bias_N is not None)


def predict_work(spec: ModelSpec, layer: Any, int8: bool = False) -> Work:  # noqa: ANN401 - by form
    """The work of a prediction by a layer's native form."""
    held, gates = predictor_bytes(spec, layer, int8), ModelWork(spec).neurons
    n, d = spec.n_neurons, spec.d_model
    if layer.form == "gate":  # every gate row, and nothing of its own
        return Work(Terms(n * gates.bytes.proposed), Terms(n * gates.flops.proposed))
    if layer.form == "window":  # beside what it holds: when each neuron fired last
        state = FLOAT32 * n
        return Work(
            Terms(held + state, proposed=gates.bytes.proposed),
            Terms(proposed=gates.flops.proposed),
        )
    weights = d * n if layer.form == "sign" else int(layer.fc1.shape[0]) * (d + n)
    return Work(Terms(held), Terms(2 * weights))
