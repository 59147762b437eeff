"""The report of a training: every layer, the whole model, and what prediction costs at run time.

Called by `hotcold train-predictors`, which writes it beside the predictors and prints it. Quality
was measured by quality.py on text that was neither trained on nor used for thresholds.
"""

import math
from typing import Any

from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.offline.evaluation.evaluate import decode_speed
from hotcold.runtime.offline.training.train import Trained
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.predictors.predictor_choice import FeedForwardBytes
from hotcold.runtime.profiles.profile import ActivationProfile

DECODE_CONTEXT, DECODE_TOKENS = 512, 128  # of the generation that is timed


def run_time(
    bundle: Bundle, trained: Trained, lookahead: int, windows: list[list[int]]
) -> tuple[float, float]:
    """Decoded tokens per second with the new predictors, and prediction's share of that time."""
    config = EngineConfig(
        model=bundle.path,
        predictor=trained.path,
        context=min(DECODE_CONTEXT, bundle.spec.max_context),
        schedule="lookahead" if lookahead else "selective",
        settings={"schedule.depth": str(lookahead)} if lookahead else {},
    )
    speed, _, share = decode_speed(prepare_model(config), windows, DECODE_TOKENS)
    return speed, share


def as_report(
    bundle: Bundle,
    profile: ActivationProfile,
    trained: Trained,
    speed: tuple[float, float] = (math.nan, math.nan),
) -> dict[str, Any]:
    """Everything measured, as plain data with units in the keys; `speed` comes from run_time."""
    quality = trained.quality
    layers = [
        {
            "layer": index,
            "width": int(layer.fc1.shape[0]) if layer.fc1 is not None else 0,
            "bytes": layer.bytes,
            "threshold": layer.threshold,
            "sparsity": float(profile.sparsity_L[index]),
            "hot_share_for_80": float(profile.share_for(0.8)[index]),
            "recall": found.audit.recall,
            "precision": found.audit.precision,
            "density": found.audit.density,
            "cosine_loss": found.cosine_loss,
        }
        for index, (layer, found) in enumerate(zip(trained.layers, quality.layers, strict=True))
    ]
    cost = FeedForwardBytes.of(
        bundle.spec,
        [found.audit.fired / found.audit.total for found in quality.layers],
        sum(layer.bytes for layer in trained.layers),
        [found.audit.density for found in quality.layers],
    )
    return {
        "predictors": str(trained.path),
        "recall_target": trained.recall,
        "recall": quality.audit.recall,
        "recall_standard_error": quality.recall_error,
        "precision": quality.audit.precision,
        "density": quality.audit.density,
        "perplexity": quality.perplexity,
        "perplexity_dense": quality.perplexity_dense,
        "perplexity_ratio": quality.ratio,
        "parameter_share": trained.parameter_share,
        "bytes": sum(layer.bytes for layer in trained.layers),
        "ffn_bytes_per_token": cost.to_json(),
        "decode_tokens_per_s": speed[0],
        "predict_time_share": speed[1],
        "seconds": trained.seconds,
        "layers": layers,
    }
