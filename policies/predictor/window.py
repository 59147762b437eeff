"""The window predictor: what fired for one of the last k tokens of this context may fire again.

Successive tokens share part of their active sets ("LLM in a flash", Alizadeh et al., 2024, keeps
the neurons of the last tokens in memory for that). No weights, no training: per neuron the
position at which it last fired. A neuron that is never proposed is never seen to fire, so in
addition

  - a prior is proposed for every token, the hottest neurons by the profile: enough to reach the
    requested recall if tokens are independent (how close it gets depends on the text),
  - one in `probe_every` neurons is proposed, different ones for each token in turn,
  - all are proposed for the first token of a context.

The predictor itself evaluates the gates and sends them with its proposals, so the executors do not
read gate rows again; they read up and down rows where the gates fire.

The gain depends on model and text. The embedded model's neurons fire nearly independently of the
last tokens: over 2,044 tokens of prose, recall 0.93 at density 0.86, no gain over the prior alone.

Scores depend on earlier tokens: the rows of `scores` are a context's tokens from its first one on.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.policies.predictor.base import Prepared, remembered
from hotcold.policies.predictor.frequency import coldest
from hotcold.runtime.predictors.predictor import F32, F64, ModelView
from hotcold.runtime.predictors.predictor_forms import MAX_WINDOW, WindowLayer
from hotcold.runtime.profiles.profile import ActivationProfile


@dataclass(frozen=True)
class Window(Prepared[WindowLayer]):
    """Propose what fired lately.

    Args:
        k: tokens looked back.
        probe_every: one in so many neurons is proposed in turn; 0: none.
        recall: share of fired neurons to propose, as the profile lets expect; sets the prior. 0, or
            no profile: no prior.
        share: share of a layer's neurons, the hottest, to be the prior instead; 0: by recall.
    """

    kind = "window"
    k: int = 8
    probe_every: int = 8
    recall: float = 0.95
    share: float = 0.0
    _model: list[ModelView] = remembered()

    def __post_init__(self) -> None:
        self.check(0, MAX_WINDOW, "k", "probe_every")
        self.check(0, 1, "recall", "share")

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Remember where the gate rows are, and choose the prior's neurons."""
        spec = model.spec
        self._model[:] = [model]
        if profile is None or not (self.share or self.recall):
            plain = WindowLayer(self.k, self.probe_every, None, threshold=1.0)
            self._layers[:] = [plain] * spec.n_layers
            self._density_L[:] = [None] * spec.n_layers
            return
        profile.check_fits(spec)
        self._layers[:] = [
            WindowLayer(self.k, self.probe_every, p.astype(np.float32), self._threshold(p))
            for p in profile.probabilities_LN
        ]
        self._density_L[:] = [
            self._density(p, layer.threshold)
            for p, layer in zip(profile.probabilities_LN, self._layers, strict=True)
        ]

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Scores [T, N] of a context's first T tokens; evaluates all gates, to know what fires."""
        form = self.native(layer)
        model = self._model[0]
        gates_TN: F32 = np.asarray(x_BD, np.float32) @ model.gate_rows(layer).T
        gates_TN += model.gate_biases(layer)
        return form.scores_of(model.spec.fires(gates_TN))

    def _again(self, probability_N: F64) -> F64:
        """Chance that a neuron outside the prior is proposed, tokens being independent."""
        silent_N: F64 = (1 - probability_N) ** self.k
        if self.probe_every:
            silent_N = silent_N * (1 - 1 / self.probe_every)
        return 1 - silent_N

    def _threshold(self, probability_N: F64) -> float:
        prior_N = probability_N.astype(np.float32)
        if self.share:
            return coldest(prior_N, 1.0, self.share)
        order = np.argsort(-probability_N, kind="stable")
        fires, again = probability_N[order], self._again(probability_N)[order]
        # Of what fires: the prior's share, and what is proposed anyway of the others.
        found = np.cumsum(fires * (1 - again)) + (fires * again).sum()
        enough = found >= self.recall * fires.sum()
        taken = int(np.argmax(enough)) if enough.any() else fires.size - 1
        # Above any probability where the window alone is expected to suffice.
        alone = (fires * again).sum() >= self.recall * fires.sum()
        return 1.0 if alone else float(prior_N[order[taken]])

    def _density(self, probability_N: F64, threshold: float) -> float:
        hot_N = probability_N.astype(np.float32) >= np.float32(threshold)
        return float(np.where(hot_N, 1.0, self._again(probability_N)).mean())
