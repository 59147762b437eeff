"""Thresholds and quality of trained predictors, measured on text they have not seen.

Layers are calibrated in order on the inputs that they will get at run time: those of a model whose
earlier layers already leave out what their predictors miss. Scores are kept as histograms, so the
text may have any length, one for each block of text: tokens beside each other are alike, so how far
another text's recall may lie from this one's is seen between blocks.

Axes: R rows (tokens), D d_model, N neurons, L layers, G blocks of text, K bins.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from hotcold.runtime.engine.audit import (
    BLOCKS,
    PredictionAudit,
    blocks_of,
    ratio_error,
    recall_error,
)
from hotcold.runtime.hardware.lone_pool import lone_pool
from hotcold.runtime.offline.training.dense import DenseModel, token_batches
from hotcold.runtime.offline.training.fit import Fitted
from hotcold.runtime.offline.training.settings import RECALLS
from hotcold.runtime.predictors.predictor_file import Calibration, OperatingPoint

Tensor = torch.Tensor
DEVIATIONS = 2.0  # of the recall of blocks of text, that another text's may lie below their mean
_BINS, _EDGE = 8192, 32.0  # scores beyond the edge count as the edge
_NEVER = 1e30  # a threshold no score reaches


class _Histogram:
    """Scores of one layer: those of fired neurons by block, and all."""

    def __init__(self) -> None:
        self.fired_GK = torch.zeros(BLOCKS, _BINS, dtype=torch.float64)
        self.every_K = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, block: int, scores_RN: Tensor, fired_RN: Tensor) -> None:
        scores_RN = scores_RN.clamp(-_EDGE, _EDGE)
        self.every_K += torch.histc(scores_RN, _BINS, -_EDGE, _EDGE)
        self.fired_GK[block] += torch.histc(scores_RN[fired_RN], _BINS, -_EDGE, _EDGE)

    def points(self, recalls: Sequence[float]) -> Calibration:
        """The highest thresholds whose recall, less its margin, is at least so much.

        A layer in which nothing fired gets one that no score reaches.
        """
        above_GK = self.fired_GK.flip(1).cumsum(1).numpy()  # at or above each edge, from the top
        fired_G1 = above_GK[:, -1:]
        if not fired_G1.any():
            return tuple(OperatingPoint(recall, _NEVER, 0.0) for recall in recalls)
        spread_K = np.nan_to_num(ratio_error(above_GK, fired_G1)) * np.sqrt((fired_G1 > 0).sum())
        sure_K = np.maximum.accumulate(above_GK.sum(0) / fired_G1.sum() - DEVIATIONS * spread_K)
        density_K = (self.every_K.flip(0).cumsum(0) / self.every_K.sum()).tolist()
        found = []
        for recall in recalls:
            last = min(_BINS - 1, int(np.searchsorted(sure_K, recall)))
            edge = _EDGE - (last + 1) * 2 * _EDGE / _BINS if last < _BINS - 1 else -_NEVER
            found.append(OperatingPoint(recall, edge, density_K[last]))
        return tuple(found)


def _blocks(windows: Sequence[Sequence[int]]) -> list[tuple[int, Tensor]]:
    """Batches of windows [B, T] and the block that each belongs to; windows in the text's order."""
    parts = enumerate(blocks_of(windows))
    return [(block, ids) for block, part in parts for ids, _ in token_batches(part, 2048)]


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
        windows: text that is neither trained on nor reported, in its order.
        recall: share of fired neurons to propose, in every layer.
        lookahead: how many layers earlier the predictors take their input.
        workers: batches run at a time.
    """
    blocks, batches = zip(*_blocks(windows), strict=True)
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
            for block, x_RD, source_RD in zip(blocks, inputs[index], seen, strict=True):
                histogram.add(block, fitted.scores(source_RD), model.fires(index, x_RD))
            points = histogram.points(recalls)
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
        return result, _perplexity(losses, batches)


def dense_perplexity(
    model: DenseModel, windows: Sequence[Sequence[int]], workers: int = 1
) -> float:
    """Perplexity with everything computed."""
    batches = [ids for ids, _ in token_batches(windows, 2048)]

    def run(ids_BT: Tensor) -> float:
        with torch.inference_mode():
            return loss_sum(model, ids_BT)

    with lone_pool(workers) as pool:
        return _perplexity(pool.map(run, batches), batches)


def _perplexity(losses: Iterable[float], batches: Sequence[Tensor]) -> float:
    """From the loss sums of batches [B, T], the first token of each window not predicted."""
    predicted = sum(ids.shape[0] * (ids.shape[1] - 1) for ids in batches)
    return math.exp(sum(losses) / max(1, predicted))


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
    """All layers, the standard error of their recall by blocks of text, the model's perplexity."""

    layers: tuple[LayerQuality, ...]
    recall_error: float
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
    blocks, batches = zip(*_blocks(windows), strict=True)
    n = len(layers)

    def run(ids_BT: Tensor) -> tuple[list[PredictionAudit], list[float], float, float]:
        audits, losses, seen = [PredictionAudit()] * n, [0.0] * n, {}

        def propose(index: int, x_RD: Tensor, _residual: Tensor) -> Tensor:
            seen[index] = x_RD
            source_RD = seen[max(0, index - lookahead)]
            mask_RN = layers[index].scores(source_RD) >= thresholds[index]
            fired_RN = model.fires(index, x_RD)
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
    quality = [
        LayerQuality(
            sum((audits[i] for audits, *_ in results), PredictionAudit()),
            sum(losses[i] for _, losses, *_ in results) / tokens,
        )
        for i in range(n)
    ]
    own = _perplexity((result[2] for result in results), batches)
    dense = _perplexity((result[3] for result in results), batches)
    by_block = [PredictionAudit()] * BLOCKS
    for block, (audits, *_) in zip(blocks, results, strict=True):
        by_block[block] = sum(audits, by_block[block])
    return ModelQuality(tuple(quality), recall_error(by_block), own, dense)


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
