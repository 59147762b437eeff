"""How often each neuron is to fire: a clipped power law fitted to a density and a skewness.

    p(rank j of N) = min(CAP, scale * ((j + 1/2) / N) ** -exponent)

`scale` fits the density (the mean of p), `exponent` the share of neurons that holds 80 % of all
activations. Pure arithmetic on numpy arrays; knows no weights.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError

F64 = NDArray[np.float64]

CAP = 0.95  # no neuron fires for every token
HELD = 0.8
_EXPONENT_LIMIT = 4.0
_STEPS = 40


@dataclass(frozen=True)
class Statistics:
    """What is asked of a planted model.

    Args:
        density: share of all neurons that fire for a token, on average.
        share80: share of a layer's neurons that hold 80 % of its activations.
        quiet: share of the layers, from the first, that are quiet.
        quiet_density: share of the neurons of a quiet layer that fire.
        variation: the other layers' density rises from 1 - variation to 1 + variation times its
            mean.

    Raises:
        ConfigError: a number outside its range.
    """

    density: float = 0.12
    share80: float = 0.43
    quiet: float = 0.0
    quiet_density: float = 0.005
    variation: float = 0.2

    def __post_init__(self) -> None:
        for name, low, high in (
            ("density", 1e-4, 0.9),
            ("share80", 0.01, 0.79),
            ("quiet", 0.0, 0.95),
            ("quiet_density", 1e-5, 0.9),
            ("variation", 0.0, 0.95),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, it must be within {low:g} and {high:g}")

    def density_L(self, n_layers: int) -> F64:
        """Density of each layer; their mean is `density`.

        Raises:
            ConfigError: the quiet layers alone exceed the density, or the others would have to fire
                too often.
        """
        n_quiet = min(int(self.quiet * n_layers), n_layers - 1)
        others = n_layers - n_quiet
        quiet = min(self.quiet_density, self.density)
        mean = (self.density * n_layers - quiet * n_quiet) / others
        ramp = np.linspace(-1, 1, others) if others > 1 else np.zeros(1)
        density_L: F64 = np.r_[np.full(n_quiet, quiet), mean * (1 + self.variation * ramp)]
        if density_L.max() > CAP * 0.98:
            raise ConfigError(
                f"a layer would have to fire {density_L.max():.1%} of its neurons for a mean of "
                f"{self.density:.1%}; lower density, quiet or variation"
            )
        return density_L


def share_holding(p_N: F64) -> float:
    """Smallest share of neurons that holds 80 % of all activations, interpolated."""
    running = np.concatenate([[0.0], np.cumsum(-np.sort(-p_N))])
    position = np.interp(HELD * running[-1], running, np.arange(len(running)))
    return float(position) / len(p_N)


def _law(n: int, density: float, exponent: float) -> F64:
    weight_N = ((np.arange(n) + 0.5) / n) ** -exponent
    # With the k hottest at the cap, the others' scale is what is left of the density; the first k
    # for which none of the others is above the cap is the right one.
    tail_N = np.cumsum(weight_N[::-1])[::-1]
    scale_N = (density * n - CAP * np.arange(n)) / tail_N
    k = int(np.argmax(scale_N * weight_N <= CAP))
    p_N: F64 = np.minimum(CAP, scale_N[k] * weight_N)
    return p_N


def firing_probabilities(n: int, density: float, share80: float) -> F64:
    """Probabilities [N], hottest first, of a layer with this density and skewness.

    Raises:
        ConfigError: no such law: the hottest neurons cannot fire often enough.
    """
    low, high = 0.0, _EXPONENT_LIMIT
    steepest = share_holding(_law(n, density, high))
    if share80 < steepest:
        raise ConfigError(
            f"{share80:.1%} of a layer's neurons cannot hold 80 % of its activations where "
            f"{density:.1%} fire: no neuron fires for more than {CAP:.0%} of tokens, so the least "
            f"is {steepest:.1%}; raise share80 or lower density"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if share_holding(_law(n, density, middle)) > share80:
            low = middle
        else:
            high = middle
    return _law(n, density, (low + high) / 2)
