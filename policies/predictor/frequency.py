"""The frequency predictor: the neurons that fired most often in the profile, for every token.

A prior, not a prediction: a layer's neurons are taken hottest first until they hold the requested
share of activations (the paper's hot neurons, section 3.1, and no others), or until the requested
share of neurons is reached. The others never run. It is the baseline for predictors, which should
reach the same recall at a lower density.

Native form: matrices of width 1 that hold zeros, and the probabilities as the bias. So it runs
wherever matrices run, and reads 6 bytes per neuron and token in fp16.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.base import Prepared
from hotcold.runtime.predictors.predictor import F32, ModelView, PredictorLayer
from hotcold.runtime.profiles.profile import ActivationProfile


@dataclass(frozen=True)
class Frequency(Prepared[PredictorLayer]):
    """Propose the hottest neurons of each layer.

    Args:
        recall: share of a layer's activations, in the profile, that they must hold.
        share: share of a layer's neurons to take instead; 0: by recall.
    """

    kind = "frequency"
    recall: float = 0.95
    share: float = 0.0

    def __post_init__(self) -> None:
        self.check(1e-9, 1, "recall")
        self.check(0, 1, "share")

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Set each layer's threshold from the profile."""
        if profile is None:
            raise ConfigError(
                "predictor 'frequency' needs the model's activation profile and there is none; "
                "make one with `hotcold profile` or choose another predictor"
            )
        spec = model.spec
        profile.check_fits(spec)
        dtype = np.float32 if spec.dtype == "float32" else np.float16
        fc1_HD, fc2_NH = np.zeros((1, spec.d_model), dtype), np.zeros((spec.n_neurons, 1), dtype)
        self._layers[:] = [
            PredictorLayer(fc1_HD, fc2_NH, prior_N, relu=False, threshold=self._threshold(prior_N))
            for prior_N in profile.probabilities_LN.astype(np.float32)
        ]
        self._density_L[:] = [
            float((layer.bias_N >= np.float32(layer.threshold)).mean())
            for layer in self._layers
            if layer.bias_N is not None
        ]

    def _threshold(self, prior_N: F32) -> float:
        return coldest(prior_N, self.recall, self.share)


def coldest(prior_N: F32, recall: float, share: float) -> float:
    """Probability of the last neuron taken, hottest first, to reach a recall or share."""
    hottest_N = np.sort(prior_N)[::-1]
    if share:
        return float(hottest_N[max(1, round(share * prior_N.size)) - 1])
    running_N = np.cumsum(hottest_N, dtype=np.float64)
    if not running_N[-1]:
        return 1.0  # nothing ever fired: nothing is taken
    taken = int(np.searchsorted(running_N, recall * running_N[-1]))
    return float(hottest_N[min(taken, prior_N.size - 1)])
