"""How sparse a model really is on a text, layer by layer: `hotcold sparsity`.

Two questions of every layer. How many of its neurons fire for a token, exactly: with a ReLU the
others add nothing. And how many could be skipped by a threshold on |act(gate)|, the same for all of
the layer's neurons and tokens (CATS, arXiv 2404.08763), before the layer's output is off by 1, 5 or
10 %: of a dense model, whose neurons all fire, this is the sparsity that there is. The error is
|y - y'| / |y| over all tokens of a sample, y the sum over all neurons and y' the one over those
that reach the threshold. Every layer is given exact inputs.

Axes: R rows of a batch, T tokens, S of them sampled, N neurons, L layers, D d_model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError
from hotcold.runtime.offline.training.dense import DenseModel, token_batches

Tensor = torch.Tensor
ERRORS = (0.01, 0.05, 0.1)
DENSE_ERROR = 0.05  # what fires in a model whose neurons all do: all above this error's threshold
GROUPS = (1, 8, 32)
SAMPLE, STEPS = 256, 12  # tokens that thresholds are searched on, halvings of the search
DENSE = 0.95  # share of firing neurons from which a layer is called dense
SEED = 0


@dataclass(frozen=True)
class LayerSparsity:
    """One layer. Shares are of its neurons.

    Args:
        dense: whether nearly all neurons fire.
        fires: that fire for a token, mean over tokens.
        spread: standard deviation of that over tokens.
        range90: between which 90 % of the tokens lie.
        active: as `fires`; of a dense layer, those above the threshold of DENSE_ERROR.
        hot80: the smallest part that makes 80 % of the active pairs of neuron and token.
        never: active for no token.
        union: by tokens of a batch, the part that one of them or more has active. Tokens are drawn
            from all of the text, as of independent sequences.
        thresholds: by error of the layer's output, the threshold on |act(gate)|.
        skipped: by error, the part that is below it.
    """

    dense: bool
    fires: float
    spread: float
    range90: tuple[float, float]
    active: float
    hot80: float
    never: float
    union: dict[int, float]
    thresholds: dict[float, float]
    skipped: dict[float, float]


def measure_sparsity(
    model: DenseModel,
    windows: Sequence[Sequence[int]],
    progress: Callable[[int, float], None] = lambda done, share: None,
) -> list[LayerSparsity]:
    """Every layer of a model over windows, each from an empty context.

    Takes 4 bytes for each token and neuron of a layer.

    Raises:
        CheckpointError: the model yields values that are not finite.
    """
    batches = token_batches(windows, 2048)
    with torch.inference_mode():
        streams = [model.embedded(ids_BT) for ids_BT, _ in batches]
        found = []
        for layer in range(model.spec.n_layers):
            parts = []
            for at, (ids_BT, _) in enumerate(batches):
                h_RD, x_RD, _ = model.enter(layer, streams[at], *ids_BT.shape)
                value_RN = model.spec.gate_values(model.gates(layer, x_RD))
                streams[at] = model.after_ffn(layer, h_RD, model.combine(layer, x_RD, value_RN))
                parts.append((x_RD, value_RN.abs_()))
            x_TD, size_TN = (torch.cat(part) for part in zip(*parts, strict=True))
            if not torch.isfinite(size_TN).all():
                raise CheckpointError(
                    f"the gates of layer {layer} are not finite on this text; convert the model "
                    "again, or take a checkpoint whose values fit float32"
                )
            found.append(_measured(model, layer, x_TD, size_TN))
            progress(layer + 1, (layer + 1) / model.spec.n_layers)
    return found


def _measured(model: DenseModel, layer: int, x_TD: Tensor, size_TN: Tensor) -> LayerSparsity:
    """size_TN: |act(gate)|, 0 where a neuron does not fire."""
    n_tokens, n_neurons = size_TN.shape
    fired_T = (size_TN > 0).sum(dim=1).cpu().numpy() / n_neurons
    fires = float(fired_T.mean())
    sample_S = torch.linspace(0, n_tokens - 1, min(SAMPLE, n_tokens)).round().long()
    thresholds = _thresholds(model, layer, x_TD[sample_S], size_TN[sample_S])
    dense = fires >= DENSE
    least = thresholds[DENSE_ERROR] if dense else 0.0
    active_TN = (size_TN > least).cpu().numpy()
    counts_N = np.sort(active_TN.sum(axis=0))[::-1]
    hot = int(np.searchsorted(np.cumsum(counts_N), 0.8 * counts_N.sum())) + 1
    low, high = np.quantile(fired_T, (0.05, 0.95))
    return LayerSparsity(
        dense=dense,
        fires=fires,
        spread=float(fired_T.std()),
        range90=(float(low), float(high)),
        active=float(active_TN.mean()),
        hot80=hot / n_neurons if counts_N[0] else 0.0,
        never=float((counts_N == 0).mean()),
        union={group: _union(active_TN, group) for group in GROUPS if group <= n_tokens},
        thresholds=thresholds,
        skipped={e: float((size_TN <= t).float().mean()) for e, t in thresholds.items()},
    )


def _union(active_TN: NDArray[np.bool_], group: int) -> float:
    """Mean share of neurons that groups of tokens need; every token is in one group at most."""
    order_T = np.random.default_rng(SEED).permutation(len(active_TN))
    groups = order_T[: len(order_T) // group * group].reshape(-1, group)
    return float(np.mean([active_TN[tokens].any(axis=0).mean() for tokens in groups]))


def _thresholds(model: DenseModel, layer: int, x_SD: Tensor, size_SN: Tensor) -> dict[float, float]:
    """The largest threshold found for each error of the output, of ERRORS."""
    parts = model.layers[layer]
    value_SN = model.spec.gate_values(model.gates(layer, x_SD))
    if "up" in parts:
        value_SN = value_SN * model.spec.up_values(x_SD @ parts["up"].T)
    exact = torch.linalg.norm(value_SN @ parts["down"])
    ranked = size_SN[size_SN > 0].flatten().sort().values
    found = {}
    for error in ERRORS:
        low, high = 0, len(ranked)  # of those that fire, how many may be skipped
        for _ in range(STEPS):
            middle = (low + high) // 2
            if middle == low:
                break
            left_out = value_SN * (size_SN <= ranked[middle - 1])
            if torch.linalg.norm(left_out @ parts["down"]) <= error * exact:
                low = middle
            else:
                high = middle
        found[error] = float(ranked[low - 1]) if low else 0.0
    return found
