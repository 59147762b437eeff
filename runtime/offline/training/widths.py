"""The sizing rule of adaptive predictors: how wide each layer's hidden layer is.

The paper's: start from the layer's sparsity (a sparse layer needs a smaller predictor), correct for
skewness (a layer whose activations come from few neurons needs less, a flat one more), then change
the width until the requested quality is reached. Quality here is the density needed for a recall.
"""

import math
from collections.abc import Iterator

import numpy as np

from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.profiles.profile import ActivationProfile

STEP = 8  # widths are multiples of what a vector register holds
GROW, SHRINK = 1.25, 0.75
TOLERANCE = 1.02  # of a density goal: narrower than what a further width would change


def parameters(spec: ModelSpec, width: int) -> int:
    """Weights of one layer's predictor, bias included."""
    return width * (spec.d_model + spec.n_neurons) + spec.n_neurons


def model_parameters(spec: ModelSpec) -> int:
    """Weights of the model itself."""
    layer = spec.d_model * (2 * spec.q_dim + 2 * spec.kv_dim + 3 * spec.n_neurons + 2)
    heads = 1 if spec.tied else 2
    return spec.n_layers * layer + heads * spec.vocab_size * spec.d_model + spec.d_model


def start_widths(spec: ModelSpec, profile: ActivationProfile, share: float) -> list[int]:
    """Widths whose predictors have `share` of the model's parameters together.

    A layer's part grows with the square root of its firing rate (sparsity) and with the share of
    its neurons that makes up 80 % of its activations (skewness), each against the layers' mean.
    """
    rate_L = np.maximum(1.0 - profile.sparsity_L, 1e-4)
    flat_L = np.maximum(profile.share_for(0.8), 1e-3)
    wish_L = np.sqrt(rate_L / rate_L.mean()) * np.sqrt(flat_L / flat_L.mean())
    column = spec.d_model + spec.n_neurons
    room = share * model_parameters(spec) - spec.n_layers * spec.n_neurons
    widths = wish_L / wish_L.sum() * max(0.0, room) / column
    return [max(STEP, STEP * math.floor(width / STEP)) for width in widths]


def density_goals(profile: ActivationProfile, mean: float) -> list[float]:
    """A goal for each layer's density whose mean is about the model's; sparse layers get less."""
    rate_L = np.maximum(1.0 - profile.sparsity_L, 1e-4)
    weight_L = np.sqrt(rate_L)
    return [float(g) for g in np.minimum(1.0, mean * weight_L / weight_L.mean())]


class WidthSearch:
    """Tries widths of one layer until the density goal is just met: iterate, `tell` each result.

    Args:
        start: the first width.
        limit: the largest one.
        goal: density that is good enough.
        rounds: widths tried at most.
    """

    def __init__(self, start: int, limit: int, goal: float, rounds: int) -> None:
        self.limit, self.goal, self.rounds = limit, goal, rounds
        self.tried: dict[int, float] = {}
        self._next: int | None = min(start, limit)

    def __iter__(self) -> Iterator[int]:
        """Widths to try."""
        while self._next is not None and len(self.tried) < self.rounds:
            yield self._next

    def tell(self, width: int, density: float) -> None:
        """The density a width needs; decides what to try next."""
        self.tried[width] = density
        good = density <= TOLERANCE * self.goal
        if good and density > 0.9 * self.goal:
            following = width  # just met: stop
        else:
            wish = width * (SHRINK if good else GROW)
            following = max(STEP, min(self.limit, STEP * round(wish / STEP)))
        self._next = None if following in self.tried else following

    @property
    def best(self) -> int:
        """The smallest width that meets the goal, else the one that comes closest."""
        met = [width for width, density in self.tried.items() if density <= TOLERANCE * self.goal]
        return min(met) if met else min(self.tried, key=lambda width: self.tried[width])
