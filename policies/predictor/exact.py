"""The exact predictor: a neuron is proposed where its gate fires.

Nothing is guessed, so the tokens are the dense model's. The price is reading every gate row of
every layer. Either the predictor actor reads them and sends the pre-activations along, or the
executors do, each for its own neurons, and the predictor is idle.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.base import remembered
from hotcold.runtime.predictors.predictor import ABOVE_ZERO, F32, ModelView, PredictorLayer
from hotcold.runtime.profiles.profile import ActivationProfile


@dataclass(frozen=True)
class Exact:
    """Evaluate the gate itself.

    Args:
        by: "predictor" (the predictor actor evaluates the gate rows from the shared store) or
            "executors" (it is idle; the executors go gate-first).
    """

    by: str = "predictor"
    _model: list[ModelView] = remembered()

    def __post_init__(self) -> None:
        if self.by not in ("predictor", "executors"):
            raise ConfigError(
                f"predictor 'exact': by is {self.by!r}, must be 'predictor' or 'executors'"
            )

    @property
    def predicts(self) -> bool:
        """False where the predictor actor is idle."""
        return self.by == "predictor"

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Remember where the gate rows are; nothing is read yet."""
        self._model[:] = [model]

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Gate pre-activations [B, N]; reads (and copies) the layer's gate rows on every call."""
        if not self._model:
            raise ConfigError("predictor 'exact' is not prepared; call prepare(model, profile)")
        model = self._model[0]
        scores_BN: F32 = np.asarray(x_BD, dtype=np.float32) @ model.gate_rows(layer).T
        scores_BN += model.gate_biases(layer)
        return scores_BN

    def native(self, layer: int) -> PredictorLayer:
        """No matrices: the loop evaluates the gate rows in the store."""
        least = self._model[0].spec.least_firing if self._model else ABOVE_ZERO
        return PredictorLayer(None, None, None, relu=False, threshold=least)
