"""The curve of a predictor: recall, density, bytes and perplexity over its operating points.

One session per operating point, all over the same windows; the dense model runs once. For
comparison an untrained predictor of the same bytes runs, too: the leading components of the gate,
over its margins. Called by `hotcold evaluate --sweep`; a single point with agreement, divergence
and speed is evaluate.py's. No Ray.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.audit import PredictionAudit
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.offline.evaluation.evaluate import (
    F32,
    Report,
    ffn_bytes,
    log_softmax,
    open_session,
    usable,
    watched,
)
from hotcold.runtime.options.config import EngineConfig

# What the thresholds are calibrated for: the paper works near the upper end.
RECALLS = (0.80, 0.85, 0.90, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
MARGINS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
OWN = "own thresholds"


@dataclass(frozen=True)
class Point:
    """A predictor with one setting.

    Args:
        kind: "learned" or "low-rank".
        setting: what was set, "recall 0.95" or "margin 1.5".
        audit: proposals against what fired, counted over all neurons.
        perplexity: with what was not proposed left out.
        ratio: the same over the dense model's.
        gate_first_bytes: feed-forward weight bytes a token: predictor, gate rows of what it
            proposes, up and down where they fire.
        predictor_bytes: of its matrices.
    """

    kind: str
    setting: str
    audit: PredictionAudit
    perplexity: float
    ratio: float
    gate_first_bytes: float
    predictor_bytes: int


@dataclass(frozen=True)
class Curves:
    """All points measured over a text.

    Args:
        points: by kind, each in ascending order of its setting.
        tokens: predicted: all but the first of each window.
        perplexity_dense: of the checkpoint with nothing skipped.
        exact_bytes: feed-forward weight bytes a token without a predictor.
        parameters: of the trained predictors.
    """

    points: tuple[Point, ...]
    tokens: int
    perplexity_dense: float
    exact_bytes: float
    parameters: int

    def density_at(self, kind: str, recall: float) -> float | None:
        """Density a kind needs for a recall, interpolated; None where its curve ends before."""
        points = [p for p in self.points if p.kind == kind and p.setting != OWN]
        points.sort(key=lambda p: p.audit.recall)
        known = [p.audit.recall for p in points]
        if not known or not known[0] <= recall <= known[-1]:
            return None
        return float(np.interp(recall, known, [p.audit.density for p in points]))


def sweep(
    config: EngineConfig, windows: Sequence[Sequence[int]], progress: Report | None = None
) -> Curves:
    """Measure the trained predictors and an untrained low rank of the same bytes.

    Args:
        config: `predictor` is "auto" or "learned" (the model's own), or a file or folder.
        windows: token ids; the context must hold each.
        progress: called with windows done and their share.

    Raises:
        ConfigError: another kind of predictor, or no text.
        CheckpointError: no predictors, or none that were calibrated.
    """
    windows = usable(windows)
    if config.predictor in ("exact", "low-rank"):
        raise ConfigError(
            f"--sweep varies the recall of trained predictors, --predictor is {config.predictor}; "
            "name a predictors file, or a model that comes with one"
        )
    kind = "learned" if config.predictor == "auto" else config.predictor
    settings = {k: v for k, v in config.settings.items() if k.rpartition(".")[0] != "predictor"}
    done, total = 0, len(windows) * (2 + len(RECALLS) + len(MARGINS))

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, done / total)

    def configured(predictor: Any, **own: Any) -> EngineConfig:
        named = {f"predictor.{name}": str(value) for name, value in own.items()}
        return replace(config, predictor=predictor, settings={**settings, **named}, audit=1)

    exact = replace(configured("exact"), dtype=None, plan=None)
    dense, audit, prepared = _measured(exact, windows, tick)
    exact_bytes = ffn_bytes(prepared, audit).exact
    points: list[Point] = []

    def add(name: str, setting: str, chosen: EngineConfig) -> Prepared:
        perplexity, audit, prepared = _measured(chosen, windows, tick)
        cost = ffn_bytes(prepared, audit)
        points.append(
            Point(
                kind=name,
                setting=setting,
                audit=audit,
                perplexity=perplexity,
                ratio=perplexity / dense,
                gate_first_bytes=cost.gate_first or cost.exact,
                predictor_bytes=sum(prepared.predictor_bytes_L),
            )
        )
        return prepared

    prepared = add("learned", OWN, configured(kind))
    for recall in RECALLS:
        add("learned", f"recall {recall:g}", configured(kind, recall=recall))
    rank, parameters = equal_rank(prepared), prepared.predictor_parameters
    for margin in MARGINS:
        add("low-rank", f"margin {margin:g}", configured("low-rank", rank=rank, margin=margin))
    tokens = sum(len(window) - 1 for window in windows)
    return Curves(tuple(points), tokens, dense, exact_bytes, parameters)


def equal_rank(prepared: Prepared) -> int:
    """The rank at which low-rank factors take the bytes of a prepared model's predictor."""
    spec = prepared.bundle.spec
    bias = 4 * spec.n_neurons * spec.n_layers
    column = (spec.d_model + spec.n_neurons) * spec.element_bytes * spec.n_layers
    rank = round((sum(prepared.predictor_bytes_L) - bias) / column)
    return max(1, min(spec.d_model, rank))


def _measured(
    config: EngineConfig, windows: Sequence[Sequence[int]], tick: Any
) -> tuple[float, PredictionAudit, Prepared]:
    """Perplexity of a configuration, and its proposals against what fired."""
    prepared = prepare_model(config)
    loss, audit = 0.0, PredictionAudit()
    with open_session(prepared) as session:
        for window in windows:
            logits_TV, found = watched(session, window)
            loss += window_loss(logits_TV, window)
            audit += found
            tick()
    return math.exp(loss / sum(len(window) - 1 for window in windows)), audit, prepared


def window_loss(logits_TV: F32, window: Sequence[int]) -> float:
    """Sum of -log p of every token of a window but the first, in nats."""
    target_T = np.asarray(window[1:])
    log_p_TV = log_softmax(logits_TV[:-1])
    return -float(log_p_TV[np.arange(len(target_T)), target_T].sum(dtype=np.float64))
