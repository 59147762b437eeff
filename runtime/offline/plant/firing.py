"""What decides whether a neuron fires, and the predictor that computes the same.

A neuron fires where b_i + u_i . z > 0, with z = V s of about a standard Gaussian in R dimensions
(see `planting` for what s is and how the model computes it). The predictor is the same arithmetic
through a hidden layer of width R + 1:

    fc1 = V with SHIFT on channel 0, and a row with GAIN times the constant
    fc2 = [u_i | b_i / GAIN]

A ReLU between two linear maps would halve the signal; SHIFT (eight standard deviations) keeps its
input positive, and rows u_i that sum to zero take SHIFT out again. (The other way, rows in pairs
+v and -v, costs twice the width.) GAIN makes b_i / GAIN no larger than u_i's elements: a row that
is quantised to 8 bits would otherwise lose them, and SHIFT multiplies what it loses (measured: 25 %
more proposed and recall 0.84; with GAIN 0.5 % more and 0.96). Noise turns u_i towards a random
direction at right angles and moves b_i; see `overfire`. Called by `planting`.

Axes: M calibration tokens, N neurons, D channels, R rank.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.offline.plant.drawing import Drawing, Guess
from hotcold.runtime.offline.plant.overfire import plan_noise, quantile
from hotcold.runtime.offline.plant.signal import randn

SHIFT = 8.0  # standard deviations of z
GAIN = 32.0  # a power of two, so that nothing is rounded
F64 = NDArray[np.float64]


def directions(drawing: Drawing, index: int, s_MD: torch.Tensor) -> torch.Tensor:
    """V [R, D], as the predictor stores it: z has mean square 1 over the calibration tokens."""
    d = drawing.spec.d_model
    v_RD = randn(s_MD.device, drawing.hidden - 1, d, drawing.seed, index, 21).mul_(d**-0.5)
    v_RD[:, 0] = 0
    v_RD /= (s_MD @ v_RD.T).square().mean().sqrt()
    return v_RD.half().float()


def unit_rows(rows: int, rank: int, device: torch.device, *key: int) -> torch.Tensor:
    """Random rows of length 1 that sum to 0."""
    u = randn(device, rows, rank, *key)
    u -= u.mean(dim=1, keepdim=True)
    u /= u.norm(dim=1, keepdim=True)
    return u.half().float()


def cut(a_MN: torch.Tensor, p_N: F64) -> torch.Tensor:
    """The value that each column exceeds with its probability: a Gaussian quantile, then corrected.

    A column's own mean and deviation are shrunk towards the layer's as far as their scatter is
    no larger than that many tokens would show by chance. The correction is one shift of the
    quantiles, the same for all, that brings the layer to its density.
    """
    count = len(a_MN)
    mean_N, variance_N = a_MN.mean(dim=0), a_MN.var(dim=0)
    layer = variance_N.mean()
    mean_N = mean_N * _trust(mean_N.square().mean(), layer / count)
    trust = _trust(variance_N.var(), 2 * layer.square() / count)
    deviation_N = (layer + trust * (variance_N - layer)).sqrt()
    tau_N = torch.from_numpy(quantile(p_N)).to(a_MN)
    beyond_MN = ((a_MN - mean_N) / deviation_N).sub_(tau_N)
    sample = beyond_MN.view(-1)[:: _stride(beyond_MN.numel(), len(p_N))]
    silent = round((1 - float(p_N.mean())) * len(sample))
    shift = sample.contiguous().kthvalue(max(1, silent)).values
    return mean_N + deviation_N * (tau_N + shift)


@dataclass(frozen=True)
class Firing:
    """What decides in one layer.

    Args:
        p_N: how often each neuron is to fire.
        z_MR: what drives them, by calibration token.
        v_RD: how z comes out of the feed-forward input.
        u_NR: each neuron's direction.
        b_N: each neuron's threshold, negated.
        fired_MN: b + u . z where that is above 0, else 0.
    """

    p_N: F64
    z_MR: torch.Tensor
    v_RD: torch.Tensor
    u_NR: torch.Tensor
    b_N: torch.Tensor
    fired_MN: torch.Tensor


def decide(drawing: Drawing, index: int, s_MD: torch.Tensor, p_N: F64) -> Firing:
    """Directions and thresholds of a layer, so that neuron i fires with probability p_i.

    s_MD is what the directions look at, without the constant channel 0.
    """
    v_RD = directions(drawing, index, s_MD)
    z_MR = s_MD @ v_RD.T
    u_NR = unit_rows(len(p_N), len(v_RD), s_MD.device, drawing.seed, index, 20)
    a_MN = z_MR @ u_NR.T
    b_N = -cut(a_MN, p_N)
    if drawing.spec.biases:  # what a checkpoint in the model's dtype can hold
        b_N = b_N.to(getattr(torch, drawing.spec.dtype)).float()
    return Firing(p_N, z_MR, v_RD, u_NR, b_N, a_MN.add_(b_N).clamp_(min=0))


def guess(drawing: Drawing, index: int, firing: Firing, constant: float) -> Guess:
    """The predictor of a layer, with the noise that was asked for.

    `constant` is the value of channel 0 of the feed-forward input, up to the norm.
    """
    n, rank = firing.u_NR.shape
    device = firing.u_NR.device
    rows_NR, bias_N = firing.u_NR, firing.b_N
    proposed = hit = int(firing.fired_MN.count_nonzero())
    if not drawing.exact:
        noise = plan_noise(firing.p_N, drawing.recall, drawing.precision)
        a_N1 = torch.from_numpy(noise.correlation_N).to(rows_NR)[:, None]
        w_NR = unit_rows(n, rank, device, drawing.seed, index, 22)
        w_NR -= (w_NR * rows_NR).sum(dim=1, keepdim=True) * rows_NR
        w_NR /= w_NR.norm(dim=1, keepdim=True)
        rows_NR = (a_N1 * rows_NR + (1 - a_N1.square()).sqrt() * w_NR).half().float()
        y_MN = firing.z_MR @ rows_NR.T
        bias_N = -cut(y_MN, noise.proposed_N)
        y_MN.add_(bias_N).clamp_(min=0)
        proposed = int(y_MN.count_nonzero())
        hit = int(y_MN.mul_(firing.fired_MN).count_nonzero())
    fc1 = torch.zeros((rank + 1, drawing.spec.d_model), dtype=torch.float16, device=device)
    fc1[:rank] = firing.v_RD.half()
    fc1[:rank, 0] = SHIFT / constant  # powers of two: exact
    fc1[rank, 0] = GAIN / constant
    fc2 = torch.empty((n, rank + 1), dtype=torch.float16, device=device)
    fc2[:, :rank] = rows_NR.half()
    fc2[:, rank] = ((bias_N - SHIFT * rows_NR.sum(dim=1)) / GAIN).half()
    return Guess(fc1, fc2, _threshold(drawing), proposed, hit)


def _threshold(drawing: Drawing) -> float:
    """Of the logits: 0, or below it by what rounding may take, where nothing may be missed."""
    dtype: torch.dtype = getattr(torch, drawing.spec.dtype)
    eps = 2.0**-7 if drawing.spec.neuron_dtype else float(torch.finfo(dtype).eps)
    margin = 4 * eps + 4 * float(torch.finfo(torch.float16).eps)
    return -margin if drawing.recall >= 1 else 0.0


def _stride(count: int, row: int) -> int:
    """A stride that leaves about a million of count elements and visits every column of a row."""
    stride = max(1, count >> 20)
    while math.gcd(stride, row) > 1:
        stride += 1
    return stride


def _trust(seen: torch.Tensor, by_chance: torch.Tensor) -> float:
    return max(0.0, 1.0 - float(by_chance) / max(float(seen), 1e-12))
