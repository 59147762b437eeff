"""Thresholds and quality of trained predictors, measured on text they have not seen.

Layers are calibrated in order on the inputs that they will get at run time: those of a model whose
earlier layers already leave out what their predictors miss. Scores are kept as histograms, so the
text may have any length.

Axes: R rows (tokens), D d_model, N neurons, L layers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from hotcold.runtime.engine.audit import PredictionAudit
from hotcold.runtime.hardware.lone_pool import lone_pool
from hotcold.runtime.offline.training.dense import DenseModel, token_batches
from hotcold.runtime.offline.training.fit import Fitted
from hotcold.runtime.predictors.predictor_file import Calibration, OperatingPoint

Tensor = torch.Tensor
RECALLS = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
_BINS, _EDGE = 8192, 32.0  # scores beyond the edge count as the edge
_NEVER = 1e30  # a threshold no score reaches


@dataclass
class _Histogram:
    """Scores of one layer: those of fired neurons, and all."""

    fired: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))
    every: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    def add(self, scores_RN: Tensor, fired_RN: Tensor) -> None:
        """Count scores."""
        self.every += torch.histc(scores_RN.clamp(-_EDGE, _EDGE), _BINS, -_EDGE, _EDGE)
        self.fired += torch.histc(scores_RN[fired_RN].clamp(-_EDGE, _EDGE), _BINS, -_EDGE, _EDGE)

    def point(self, recall: float) -> OperatingPoint:
        """The highest threshold that reaches a recall; an unreachable one where nothing fired."""
        fired, every = float(self.fired.sum()), float(self.every.sum())
        if not fired:
            return OperatingPoint(recall, _NEVER, 0.0)
        above = self.fired.flip(0).cumsum(0)  # fired at or above each edge, from the top
        bins = min(_BINS, int(torch.searchsorted(above, recall * fired)) + 1)
        density = float(self.every.flip(0)[:bins].sum()) / max(1.0, every)
        edge = _EDGE - bins * 2 * _EDGE / _BINS if bins < _BINS else -_NEVER
        return OperatingPoint(recall, edge, density)


def calibrate(
    model: DenseModel,
    layers: Sequence[Fitted],
    windows: Sequence[Sequence[int]],
    recall: float,
    lookahead: int = 0,
    workers: int = 1,
) -> tuple[list[Calibration], float]:
    """Operating points of every layer, the requested one among them, and the perplexity it gives.

    Args:
        model: the model.
        layers: its predictors.
        windows: text that is neither trained on nor reported.
        recall: share of fired neurons to propose, in every layer.
        lookahead: how many layers earlier the predictors take their input.
        workers: batches run at a time.
    """
    batches = [ids for ids, _ in token_batches(windows, 2048)]
    recalls = sorted({*RECALLS, recall})
    result: list[Calibration] = []
    with torch.inference_mode(), lone_pool(workers) as pool:
        states = list(pool.map(model.embedded, batches))
        inputs: list[list[Tensor]] = []
        for index, fitted in enumerate(layers):
            states = list(
                pool.map(lambda s, b, i=index: model.attend(i, s, *b.shape), states, batches)
            )
            inputs.append(list(pool.map(lambda s, i=index: model.ffn_input(i, s), states)))
            seen = inputs[max(0, index - lookahead)]
            histogram = _Histogram()
            for x_RD, source_RD in zip(inputs[index], seen, strict=True):
                histogram.add(fitted.scores(source_RD), model.gates(index, x_RD) > 0)
            points = tuple(histogram.point(value) for value in recalls)
            threshold = next(p.threshold for p in points if p.recall == recall)
            result.append(points)

            def finish(
                state: Tensor,
                x_RD: Tensor,
                source_RD: Tensor,
                i: int = index,
                at: float = threshold,
            ) -> Tensor:
                mask_RN = layers[i].scores(source_RD) >= at
                return model.after_ffn(i, state, model.feed_forward(i, x_RD, mask_RN))

            states = list(pool.map(finish, states, inputs[index], seen))
            if index >= lookahead:
                inputs[index - lookahead] = []
        losses = pool.map(lambda s, ids: _loss(model, model.final_norm(s), ids), states, batches)
        predicted = sum(ids.shape[0] * (ids.shape[1] - 1) for ids in batches)
        return result, math.exp(sum(losses) / max(1, predicted))


def dense_perplexity(
    model: DenseModel, windows: Sequence[Sequence[int]], workers: int = 1
) -> float:
    """Perplexity with everything computed."""
    batches = [ids for ids, _ in token_batches(windows, 2048)]

    def run(ids_BT: Tensor) -> float:
        with torch.inference_mode():
            return loss_sum(model, ids_BT)

    with lone_pool(workers) as pool:
        total = sum(pool.map(run, batches))
    predicted = sum(ids.shape[0] * (ids.shape[1] - 1) for ids in batches)
    return math.exp(total / max(1, predicted))


@dataclass(frozen=True)
class LayerQuality:
    """One layer's predictor on the report text, on the inputs it gets at run time.

    Args:
        audit: recall, precision, density.
        cosine_loss: mean over tokens of 1 - cos(layer output, output with everything computed).
    """

    audit: PredictionAudit
    cosine_loss: float


@dataclass(frozen=True)
class ModelQuality:
    """All layers, and what they do to the model."""

    layers: tuple[LayerQuality, ...]
    perplexity: float
    perplexity_dense: float

    @property
    def audit(self) -> PredictionAudit:
        """All layers together."""
        return sum((layer.audit for layer in self.layers), PredictionAudit())

    @property
    def ratio(self) -> float:
        """Perplexity over the dense model's."""
        return self.perplexity / self.perplexity_dense


def measure(
    model: DenseModel,
    layers: Sequence[Fitted],
    thresholds: Sequence[float],
    windows: Sequence[Sequence[int]],
    lookahead: int = 0,
    workers: int = 1,
) -> ModelQuality:
    """Judge predictors at fixed thresholds, inputs drifting as they do at run time."""
    batches = [ids for ids, _ in token_batches(windows, 2048)]
    n = len(layers)

    def run(ids_BT: Tensor) -> tuple[list[PredictionAudit], list[float], float, float]:
        audits, losses, seen = [PredictionAudit()] * n, [0.0] * n, {}

        def propose(index: int, x_RD: Tensor, _residual: Tensor) -> Tensor:
            seen[index] = x_RD
            source_RD = seen[max(0, index - lookahead)]
            mask_RN = layers[index].scores(source_RD) >= thresholds[index]
            fired_RN = model.gates(index, x_RD) > 0
            audits[index] = PredictionAudit.of(mask_RN.numpy(), fired_RN.numpy())
            full_RD = model.feed_forward(index, x_RD)
            cut_RD = model.feed_forward(index, x_RD, mask_RN)
            losses[index] = float((1 - F.cosine_similarity(full_RD, cut_RD)).sum())
            return mask_RN

        with torch.inference_mode():
            own = loss_sum(model, ids_BT, propose)
            return audits, losses, own, loss_sum(model, ids_BT)

    with lone_pool(workers) as pool:
        results = list(pool.map(run, batches))
    tokens = sum(ids.numel() for ids in batches)
    predicted = sum(ids.shape[0] * (ids.shape[1] - 1) for ids in batches)
    quality = [
        LayerQuality(
            sum((audits[i] for audits, *_ in results), PredictionAudit()),
            sum(losses[i] for _, losses, *_ in results) / tokens,
        )
        for i in range(n)
    ]
    own = math.exp(sum(result[2] for result in results) / max(1, predicted))
    dense = math.exp(sum(result[3] for result in results) / max(1, predicted))
    return ModelQuality(tuple(quality), own, dense)


def loss_sum(
    model: DenseModel,
    ids_BT: Tensor,
    propose: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> float:
    """Sum of -log p of every token but the first of each window, in nats."""
    return _loss(model, model.hidden(ids_BT, propose=propose), ids_BT)


def _loss(model: DenseModel, hidden_RD: Tensor, ids_BT: Tensor) -> float:
    length = ids_BT.shape[1]
    hidden_BTD = hidden_RD.view(ids_BT.shape[0], length, -1)[:, :-1]
    rows_RD, target_R = hidden_BTD.reshape(-1, hidden_RD.shape[1]), ids_BT[:, 1:].reshape(-1)
    total = 0.0
    for at in range(0, len(rows_RD), 512):
        logits_RV = model.logits(rows_RD[at : at + 512])
        total += float(F.cross_entropy(logits_RV, target_R[at : at + 512], reduction="sum"))
    return total
