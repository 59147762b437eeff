"""The learned predictor: one trained two-matrix network a layer, read from a file.

It alone decides which neurons are proposed, so a neuron it misses is missing from the output. How
many it finds is its recall, which is measured elsewhere. Training is in runtime/offline/training.
"""

import math
from dataclasses import dataclass, replace

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.policies.predictor.base import remembered
from hotcold.runtime.predictors.predictor import F32, INPUTS, ModelView, PredictorLayer
from hotcold.runtime.predictors.predictor_file import PredictorFile, load_predictors
from hotcold.runtime.profiles.profile import ActivationProfile


@dataclass(frozen=True)
class Learned:
    """fc2 . relu(fc1 . x) + bias, by layer.

    Args:
        path: a predictors file or its folder, or a folder of PowerInfer's model_{i}.pt; empty: the
            file in the model's bundle.
        threshold: replaces the file's thresholds in every layer.
        recall: share of fired neurons to propose, by the file's calibration; 0: its own thresholds.
        input: "normed" or "residual", replaces what the file says; empty: as the file says.
    """

    path: str = ""
    threshold: float | None = None
    recall: float = 0.0
    input: str = ""
    _file: list[PredictorFile] = remembered()

    def __post_init__(self) -> None:
        if self.input not in ("", *INPUTS):
            raise ConfigError(
                f"predictor 'learned': input is {self.input!r}, must be 'normed' or 'residual'"
            )
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"predictor 'learned': threshold is {self.threshold}, must be finite")
        if self.recall and self.threshold is not None:
            raise ConfigError("predictor 'learned' takes a recall or a threshold, not both")

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Read the file and check it against the model."""
        path = self.path or model.predictors_path
        if not path:
            raise CheckpointError(
                "predictor 'learned' needs trained predictors and the model's bundle has none; "
                "name a predictors file or use the predictor 'exact'"
            )
        found = load_predictors(path, model.spec)
        if self.recall:
            points = [found.point(layer, self.recall) for layer in range(model.spec.n_layers)]
            found = replace(
                found,
                layers=tuple(
                    replace(layer, threshold=point.threshold)
                    for layer, point in zip(found.layers, points, strict=True)
                ),
                density_L=tuple(point.density for point in points),
            )
        self._file[:] = [found]

    @property
    def lookahead(self) -> int:
        """How many layers early these were trained to predict; 0 before they are read."""
        return self._file[0].lookahead if self._file else 0

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Logits [B, N]; x is the input named by native(layer).input."""
        return self.native(layer).scores(x_BD)

    def native(self, layer: int) -> PredictorLayer:
        """The layer as read, with this predictor's own threshold and input where they are set."""
        if not self._file:
            raise ConfigError("predictor 'learned' is not prepared; call prepare(model, profile)")
        found = self._file[0].layers[layer]
        if self.threshold is not None:
            found = replace(found, threshold=self.threshold)
        if self.input:
            found = replace(found, input="normed" if self.input == "normed" else "residual")
        return found

    def density(self, layer: int) -> float | None:
        """Share of neurons proposed, where the file states it for the threshold in use."""
        if not self._file or self.threshold is not None:
            return None
        return self._file[0].density_L[layer]
