"""train_predictors: from a model, a profile and text to predictors.safetensors.

Capture the layers' inputs, fit layers side by side (each over the widths its search tries), set
thresholds on held-back text, judge on other text, write. Every finished layer is a file under
`.training` in the output folder, so an interrupted run resumes where it was; that folder is removed
at the end.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.hardware.lone_pool import lone_pool
from hotcold.runtime.model.checkpoints.bundle import Bundle
from hotcold.runtime.offline.training.capture import capture_inputs
from hotcold.runtime.offline.training.dense import DenseModel
from hotcold.runtime.offline.training.fit import Fitted, density_at, fit_layer
from hotcold.runtime.offline.training.quality import (
    ModelQuality,
    calibrate,
    dense_perplexity,
    measure,
)
from hotcold.runtime.offline.training.settings import RECALLS, WORK, TrainSettings
from hotcold.runtime.offline.training.widths import (
    WidthSearch,
    density_goals,
    model_parameters,
    start_widths,
)
from hotcold.runtime.predictors.predictor import PredictorLayer
from hotcold.runtime.predictors.predictor_file import FILE_NAME, Calibration, save_predictors
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.weights.weights import WeightStore

MARGIN = 0.005  # of perplexity: what the calibration text may be off by
Say = Callable[[str], None]
Windows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Trained:
    """What came out.

    Args:
        path: the predictors file.
        layers: predictors as written.
        recall: operating point chosen (at least the one asked for).
        quality: on the report text.
        parameter_share: of the model's parameters.
        seconds: by part: capture, fit, calibrate, report.
    """

    path: Path
    layers: tuple[PredictorLayer, ...]
    recall: float
    quality: ModelQuality
    parameter_share: float
    seconds: dict[str, float]


def train_predictors(
    bundle: Bundle,
    profile: ActivationProfile,
    train: Windows,
    calibration: Windows,
    report: Windows,
    out: Path,
    settings: TrainSettings | None = None,
    say: Say = lambda text: None,
) -> Trained:
    """Train a predictor for every layer and write them.

    Args:
        bundle: the model.
        profile: its firing counts.
        train: windows of token ids to fit on.
        calibration: windows that set the thresholds; none of them trained on.
        report: windows the figures are of; in neither of the others.
        out: folder for predictors.safetensors, made if missing.
        settings: see TrainSettings.
        say: told what is going on.

    Raises:
        CheckpointError: the profile is another model's.
        ConfigError: settings that do not fit the model.
    """
    settings = settings or TrainSettings()
    profile.check_fits(bundle.spec)
    settings.check_fits(bundle.spec)
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with WeightStore.open(bundle) as store:
        model = DenseModel(bundle, store, settings.context)
    clock = _Clock()
    tokens = sum(len(window) for window in train)
    say(f"capturing the inputs of {bundle.spec.n_layers} layers over {tokens:,} tokens")
    captured = capture_inputs(
        model, train, work / "inputs", _digest(bundle.checksum, train), settings.workers
    )
    clock.lap("capture")
    job = _Job(model, profile, captured, settings, work, _key(bundle, profile, train, settings))
    fitted = job.run(say)
    clock.lap("fit")
    recall, calibrations = _operating_point(model, fitted, calibration, settings, say)
    clock.lap("calibrate")
    thresholds = [_at(points, recall).threshold for points in calibrations]
    quality = measure(model, fitted, thresholds, report, settings.lookahead, settings.workers)
    clock.lap("report")
    layers = _write(out / FILE_NAME, fitted, calibrations, recall, settings)
    share = sum(layer.parameters for layer in layers) / model_parameters(bundle.spec)
    shutil.rmtree(work, ignore_errors=True)
    return Trained(out / FILE_NAME, layers, recall, quality, share, clock.seconds)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now


@dataclass
class _Job:
    """The fitting of all layers over one capture."""

    model: DenseModel
    profile: ActivationProfile
    captured: list[NDArray[np.float16]]
    settings: TrainSettings
    work: Path
    key: str

    def run(self, say: Say) -> list[Fitted]:
        """All layers, those already on disk read back."""
        spec, s = self.model.spec, self.settings
        if s.width:
            starts = limits = [s.width] * spec.n_layers
        else:
            starts = start_widths(spec, self.profile, min(s.start, s.share))
            limits = start_widths(spec, self.profile, s.share)
        goals = density_goals(self.profile, s.density)
        with lone_pool(s.workers, "medium") as pool:
            return list(
                pool.map(
                    lambda i: self._layer(i, starts[i], limits[i], goals[i], say),
                    range(spec.n_layers),
                )
            )

    def _layer(self, index: int, start: int, limit: int, goal: float, say: Say) -> Fitted:
        path = self.work / f"layer.{index}.safetensors"
        found = _read_layer(path, self.key)
        if found is not None:
            say(f"layer {index}: done before")
            return found
        s = self.settings
        own, seen = self.captured[index], self.captured[max(0, index - s.lookahead)]
        held = max(1, len(own) // 20)
        fires = partial(self.model.fires, index)
        chances_N = self.profile.probabilities_LN[index]
        search = WidthSearch(start, limit, goal, 1 if s.width else s.rounds)
        results: dict[int, Fitted] = {}
        for width in search:
            began = time.monotonic()
            fit = fit_layer(seen[:-held], own[:-held], fires, chances_N, width, s.fit)
            results[width] = fit.rounded(torch.float16)
            density = density_at(results[width], seen[-held:], own[-held:], fires, s.recall)
            search.tell(width, density)
            say(
                f"layer {index}: width {width}, density {density:.3f} at recall {s.recall} "
                f"(goal {goal:.3f}), {time.monotonic() - began:.0f} s"
            )
        chosen = results[search.best]
        _save_layer(path, self.key, chosen)
        return chosen


def _operating_point(
    model: DenseModel,
    fitted: Sequence[Fitted],
    windows: Windows,
    settings: TrainSettings,
    say: Say,
) -> tuple[float, list[Calibration]]:
    """The lowest recall, from the requested one up, whose perplexity is close to the dense one."""
    dense = dense_perplexity(model, windows, settings.workers)
    limit = settings.perplexity - MARGIN * (settings.perplexity - 1) if settings.perplexity else 0.0
    higher = [r for r in RECALLS if r > settings.recall] if limit else []
    for recall in [settings.recall, *higher]:
        points, own = calibrate(
            model, fitted, windows, recall, settings.lookahead, settings.workers
        )
        density = sum(_at(p, recall).density for p in points) / len(points)
        say(f"recall {recall}: density {density:.3f}, perplexity {own / dense:.4f}x")
        if not limit or own / dense <= limit:
            break
    return recall, points


def _at(points: Calibration, recall: float) -> Any:
    return next(point for point in points if point.recall == recall)


def _write(
    path: Path,
    fitted: Sequence[Fitted],
    calibrations: Sequence[Calibration],
    recall: float,
    settings: TrainSettings,
) -> tuple[PredictorLayer, ...]:
    layers = []
    notes = {"recall": repr(recall), "lookahead": str(settings.lookahead)}
    for index, (layer, points) in enumerate(zip(fitted, calibrations, strict=True)):
        point = _at(points, recall)
        fc1, fc2 = layer.fc1_HD.to(torch.float16), layer.fc2_NH.to(torch.float16)
        layers.append(
            PredictorLayer(
                fc1.contiguous().numpy(),
                fc2.contiguous().numpy(),
                layer.bias_N.contiguous().numpy(),
                relu=True,
                threshold=point.threshold,
            )
        )
        notes[f"layers.{index}.density"] = f"{point.density:.6f}"
        rows = [[p.recall, p.threshold, round(p.density, 6)] for p in points]
        notes[f"layers.{index}.calibration"] = json.dumps(rows)
    save_predictors(path, layers, notes)
    return tuple(layers)


def _digest(model: str, windows: Windows) -> str:
    digest = hashlib.sha256(model.encode())
    for window in windows:
        digest.update(np.asarray(window, np.int32).tobytes() + b"|")
    return digest.hexdigest()


def _key(
    bundle: Bundle, profile: ActivationProfile, train: Windows, settings: TrainSettings
) -> str:
    own = {
        k: v
        for k, v in asdict(settings).items()
        if k not in ("workers", "perplexity", "share", "start")
    }
    own["limits"] = start_widths(bundle.spec, profile, settings.share)
    own["starts"] = start_widths(bundle.spec, profile, settings.start)
    return hashlib.sha256(
        (_digest(bundle.checksum, train) + json.dumps(own, sort_keys=True)).encode()
    ).hexdigest()


def _save_layer(path: Path, key: str, layer: Fitted) -> None:
    tensors = {"fc1": layer.fc1_HD, "fc2": layer.fc2_NH, "bias": layer.bias_N}
    parts = {name: part.contiguous() for name, part in tensors.items()}
    write_atomically(path, save(parts, metadata={"key": key}))


def _read_layer(path: Path, key: str) -> Fitted | None:
    """A finished layer; None where there is none of this very job."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return Fitted(*(file.get_tensor(name) for name in ("fc1", "fc2", "bias")))
    except (OSError, SafetensorError, CheckpointError):
        return None
