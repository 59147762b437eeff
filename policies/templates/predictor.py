"""A predictor: which neurons of a layer may fire for an input, before any gate is evaluated.

Try it:

    hotcold generate "Once upon a time" --predictor mine.py:Mine --vram 28MiB
    hotcold evaluate --text book.txt --predictor mine.py:Mine --predictor all

and test it with `hotcold.policies.suites.check_predictor(Mine())`.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hotcold.runtime.predictors.predictor import ModelView, PredictorLayer
from hotcold.runtime.profiles.profile import ActivationProfile

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Mine:
    """Random projections of the gate matrix, with a margin.

    Args:
        rank: width of the projection; --set predictor.rank=64.
        margin: how far below zero an estimate still counts, in standard deviations of its error.
        seed: of the projection.
    """

    rank: int = 96
    margin: float = 2.0
    seed: int = 0
    _layers: list[PredictorLayer] = field(default_factory=list, init=False, repr=False)

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Make one PredictorLayer a layer: fc1 [H, D], fc2 [N, H] and a bias [N]."""
        draw = np.random.default_rng(self.seed)
        d = model.spec.d_model
        rank = min(self.rank, d)
        fc1_HD = np.linalg.qr(draw.standard_normal((d, rank)))[0].T.astype(np.float32)
        self._layers.clear()
        for layer in range(model.spec.n_layers):
            gate_ND = model.gate_rows(layer)
            fc2_NH = gate_ND @ fc1_HD.T * (d / rank) ** 0.5
            missed_N = np.linalg.norm(gate_ND, axis=1) * (1 - rank / d) ** 0.5
            self._layers.append(
                PredictorLayer(
                    np.ascontiguousarray(fc1_HD),
                    np.ascontiguousarray(fc2_NH.astype(np.float32)),
                    (self.margin * missed_N).astype(np.float32),
                    relu=False,
                    threshold=0.0,
                )
            )

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Scores [B, N]; at or above the threshold a neuron is proposed."""
        return self.native(layer).scores(x_BD)

    def native(self, layer: int) -> PredictorLayer:
        """The same in the form the kernels run."""
        return self._layers[layer]
