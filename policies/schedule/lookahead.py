"""lookahead: predict a layer early, from the input of the layer before.

Deja Vu's asynchronous predictors (Liu et al., ICML'23): the residual stream changes slowly from
layer to layer, so the active set of layer l can be guessed from what layer l - 1 read, while that
layer is still being computed. The prediction is off the critical path, and less accurate. The gate
still decides whether a proposed neuron fires; a missed one is missing from the sum, so the tokens
may change. On a GPU the prediction and the lists are computed before the merge of the layer it
reads, while that layer's cold sum is awaited (native/cuda/executor/graph.cu);
`Engine.stats().phase_s` and the spans show it. While the GPU then computes the layer's attention,
the CPU executor reads the records of its list into its caches (native/ops/ahead.c), so the GPU does
not wait for those. It ignores whether a layer's prediction takes long enough for this to pay.
Without a predictor it is `selective`.
"""

from dataclasses import dataclass, replace

from hotcold.native.errors import ConfigError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, in_order


@dataclass(frozen=True)
class Lookahead:
    """Selective synchronisation, and predictions made some layers early.

    Args:
        depth: how many layers early.
        start: first layer that is predicted early; the residual stream changes most in the first.
        read_ahead: read records before the layer's input is there, beside a GPU; without one the
            memory is busy with attention then.

    Raises:
        ConfigError: a setting out of range.
    """

    depth: int = 1
    start: int = 1
    read_ahead: bool = True

    def __post_init__(self) -> None:
        if self.depth < 0 or self.start < 0:
            raise ConfigError(
                f"schedule 'lookahead': depth {self.depth} and start {self.start} must be at least "
                "0"
            )

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer, predictions as early as depth and the first layer allow."""
        predicted = {node.layer for node in dag.nodes if node.kind == "predict"}
        ahead = tuple(
            min(self.depth, layer) if layer >= self.start and layer in predicted else 0
            for layer in range(dag.n_layers)
        )
        plain = in_order(dag, sync="selective", lookahead=ahead)
        return replace(plain, read_ahead=self.read_ahead and hardware.has_gpu)
