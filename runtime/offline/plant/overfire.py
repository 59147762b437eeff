"""Predictor noise of a wanted recall and precision, in the Gaussian model of a planted layer.

A neuron's gate is a Gaussian g above its threshold with probability p. Its noisy logit is a second
Gaussian y whose correlation with g is a, above its own threshold with probability q. Given recall
and precision, `plan_noise` says a and q for every neuron:

    P(g fires and y proposes) = recall p        sum of q = sum of p * recall / precision

Pure arithmetic; `planting` turns a into a row of the predictor. Without noise: a = 1 and q = p.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError

F64 = NDArray[np.float64]
_STEPS = 50
_GRID = 96
_POINTS = 513


class Noise(NamedTuple):
    """Correlation of each neuron's logit with its gate, and how often it is proposed."""

    correlation_N: F64
    proposed_N: F64


def quantile(p: F64) -> F64:
    """The value a standard Gaussian exceeds with probability p."""
    result: F64 = -torch.special.ndtri(torch.from_numpy(np.asarray(p, np.float64))).numpy()
    return result


def _joint(p: F64, q: F64, a: F64) -> F64:
    """P(g > its threshold and y > its threshold) for two Gaussians of correlation a."""
    low = quantile(p)[:, None]
    u = np.linspace(0.0, 1.0, _POINTS)[None, :]
    g = low + (8.5 - low) * u
    rest = np.sqrt(np.maximum(1 - a * a, 1e-12))[:, None]
    above = torch.special.ndtr(
        torch.from_numpy((a[:, None] * g - quantile(q)[:, None]) / rest)
    ).numpy()
    density = np.exp(-0.5 * g * g) / np.sqrt(2 * np.pi) * above
    result: F64 = (density[:, 1:] + density[:, :-1]).sum(1) / 2 * (8.5 - low[:, 0]) / (_POINTS - 1)
    return result


def _correlations(p: F64, q: F64, wanted: F64) -> F64:
    low, high = np.zeros_like(p), np.ones_like(p)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        less = _joint(p, q, middle) < wanted
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    result: F64 = (low + high) / 2
    return result


def _proposed(p_N: F64, recall: float, factor: float) -> F64:
    """Q = min(cap, k p), k fitted to sum of q = factor * sum of p; recall bounds it both ways."""
    cap_N = np.maximum((p_N + recall) / 2, recall * p_N)
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        if np.minimum(cap_N, middle * p_N).sum() < factor * p_N.sum():
            low = middle
        else:
            high = middle
    q_N: F64 = np.clip(high * p_N, recall * p_N, cap_N)
    return q_N


def plan_noise(p_N: F64, recall: float, precision: float) -> Noise:
    """How much noise each neuron's logit gets.

    Raises:
        ConfigError: no noise gives so low a precision at that recall.
    """
    if recall >= 1 and precision >= 1:
        return Noise(np.ones_like(p_N), p_N)
    factor = recall / precision
    q_N = _proposed(p_N, recall, factor)
    if q_N.sum() < 0.99 * factor * p_N.sum():
        raise ConfigError(
            f"precision {precision} is too low for recall {recall}: that would propose "
            f"{factor * p_N.mean():.1%} of a layer's neurons; raise precision or lower density"
        )
    grid = np.exp(np.linspace(np.log(p_N.min()), np.log(p_N.max()), _GRID))
    order = np.argsort(p_N)
    q_grid = np.interp(np.log(grid), np.log(p_N[order]), q_N[order])
    wanted = np.minimum(recall * grid, np.minimum(grid, q_grid) * (1 - 1e-9))
    a_grid = _correlations(grid, q_grid, wanted)
    return Noise(np.interp(np.log(p_N), np.log(grid), a_grid), q_N)
