"""What the pictures show, as numbers. Nothing is drawn here; needs only numpy.

Axes: L layers, N neurons, P points of a curve, Q calibrated recalls.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.predictors.predictor_file import PredictorFile
from hotcold.runtime.profiles.profile import ActivationProfile

F64 = NDArray[np.float64]
POINTS = 400  # of a curve: more would not be seen


@dataclass(frozen=True)
class Curve:
    """Points of a line, each axis a share from 0 to 1."""

    x_P: F64
    y_P: F64


def activation_share(counts: NDArray[np.int64]) -> Curve | None:
    """Figure 5 of the paper: the share of all activations that the hottest neurons hold.

    Args:
        counts: of any shape; all its neurons are ranked together.

    Returns:
        x: share of neurons, hottest first; y: their share of activations. None where none fired.
    """
    falling_N = np.sort(counts.reshape(-1))[::-1]
    running_N = np.concatenate([[0], np.cumsum(falling_N)])
    if running_N[-1] == 0:
        return None
    picked_P = np.unique(np.linspace(0, len(falling_N), POINTS).round().astype(np.int64))
    return Curve(picked_P / len(falling_N), running_N[picked_P] / running_N[-1])


@dataclass(frozen=True)
class PredictorFacts:
    """One layer's predictor.

    Args:
        width: of its hidden layer.
        nbytes: of its matrices.
        curve: x: density, y: recall, at the calibrated thresholds; None where there are none.
        recall, density: at the threshold in use, on text set apart; None where not reported.
    """

    width: int
    nbytes: int
    curve: Curve | None
    recall: float | None = None
    density: float | None = None


def predictor_facts(
    file: PredictorFile, measured: Sequence[tuple[float, float]] = ()
) -> list[PredictorFacts]:
    """Facts of every layer.

    Args:
        file: the predictors.
        measured: recall and density of every layer on text set apart, where they were reported.
    """
    facts = []
    for index, layer in enumerate(file.layers):
        points = file.calibration_L[index] if file.calibration_L else ()
        curve = None
        if points:
            curve = Curve(
                np.array([point.density for point in points]),
                np.array([point.recall for point in points]),
            )
        recall, density = measured[index] if measured else (None, file.density_L[index])
        width = 0 if layer.fc1 is None else int(layer.fc1.shape[0])
        facts.append(PredictorFacts(width, layer.bytes, curve, recall, density))
    return facts


def model_curve(facts: Sequence[PredictorFacts]) -> Curve | None:
    """All layers at the same recall: the mean of their densities; None if they were not calibrated.

    Layers calibrated for different recalls have no such curve either.
    """
    curves = [fact.curve for fact in facts]
    first = curves[0] if curves else None
    if first is None:
        return None
    same = [curve for curve in curves if curve is not None and np.array_equal(curve.y_P, first.y_P)]
    if len(same) != len(curves):
        return None
    return Curve(np.mean([curve.x_P for curve in same], axis=0), first.y_P)


@dataclass(frozen=True)
class Scene:
    """All that the pictures are of.

    Args:
        model: its name.
        profile: its counts.
        predictors: of every layer; empty without any.
        trained_on: where the predictors come from, in words.
    """

    model: str
    profile: ActivationProfile
    predictors: tuple[PredictorFacts, ...] = ()
    trained_on: str = ""

    @property
    def caption(self) -> str:
        """Model and text, for under a title."""
        text = self.profile.source or "text not recorded"
        return f"{self.model}; {text}; {self.profile.tokens:,} tokens"
