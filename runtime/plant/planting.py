"""The construction: weights of a layer whose neurons fire as often as they are told to.

Channel 0 of the residual stream is constant (see `signal`). The gate row of neuron i is

    gate_i = (b_i / constant) on channel 0  +  u_i V on the others,    |u_i| = 1, V [R, D] random

so that gate_i . x = rho (b_i + u_i . z) with z = V s about a standard Gaussian, s the stream
without channel 0 and rho > 0 what the RMS norm scales by: a positive factor never changes whether a
neuron fires, so the norm need not be calibrated, and the only number to choose is b_i, the quantile
of u_i . z. Everything else is random, scaled so that all layers together add a fixed share to the
stream's energy: inputs look alike at every depth, and no decoding drifts away.

The predictor is the same arithmetic through a hidden layer of width R + 1:

    fc1 = V with SHIFT on channel 0, and a row that copies the constant;  fc2 = [u_i | b_i]

A ReLU between two linear maps would halve the signal; SHIFT (eight standard deviations) keeps its
input positive, and rows u_i that sum to zero take SHIFT out again. (The other way, rows in pairs
+v and -v, costs twice the width.) Noise turns u_i towards a random direction at right angles and
moves b_i; see `overfire`.

Axes: M calibration tokens, N neurons, D channels, R rank.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.model import ModelSpec
from hotcold.runtime.plant.forward import attention, rms_norm
from hotcold.runtime.plant.overfire import plan_noise, quantile
from hotcold.runtime.plant.signal import Signal, generator, make_signal
from hotcold.runtime.plant.statistics import Statistics, firing_probabilities

SHIFT = 8.0  # standard deviations of z
STRENGTH = 0.5  # standard deviation that all layers together add to a stream of 1
SHARPNESS = 2.0  # standard deviation of attention scores: a few tokens matter, not all or one
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Drawing:
    """What a model is drawn from.

    Args:
        spec: shapes and dtype.
        statistics: how often neurons fire.
        hidden: width of the predictor.
        recall, precision: of the predictor; 1 and 1: exact.
        correlation, drift: of the driving signal.
        seed: of everything random.
        sequences, length: the calibration tokens.
    """

    spec: ModelSpec
    statistics: Statistics
    hidden: int
    recall: float
    precision: float
    correlation: float
    drift: float
    seed: int
    sequences: int
    length: int


@dataclass(frozen=True)
class PlantedLayer:
    """One layer, on the device it was made on; matrices in the model's dtype.

    Args:
        qkv, o: attention.
        gate_ND, up_ND, down_ND: one row a neuron (down transposed).
        fc1, fc2: the predictor, float16.
        threshold: of its logits.
        counts_N: calibration tokens for which each neuron fired.
        proposed, hit: neurons proposed over all calibration tokens, and those of them that fired.
    """

    qkv: torch.Tensor
    o: torch.Tensor
    gate_ND: torch.Tensor
    up_ND: torch.Tensor
    down_ND: torch.Tensor
    fc1: torch.Tensor
    fc2: torch.Tensor
    threshold: float
    counts_N: NDArray[np.int64]
    proposed: int
    hit: int


class Planter:
    """Makes a model's tensors, a layer at a time; `layers` must be walked once and in order.

    Args:
        drawing: what to make.
        device: where.
    """

    def __init__(self, drawing: Drawing, device: torch.device) -> None:
        self.drawing, self.device = drawing, device
        self.spec = drawing.spec
        self.dtype: torch.dtype = getattr(torch, self.spec.dtype)
        self.signal: Signal = make_signal(
            self.spec, self.dtype, device, drawing.seed, drawing.correlation, drawing.drift
        )
        ids = self.signal.sequences(drawing.sequences, drawing.length, drawing.seed)
        self._h_MD = self.signal.embed_VD[ids.reshape(-1)].float()
        self.tokens = len(self._h_MD)
        self._part = STRENGTH / math.sqrt(2 * self.spec.n_layers)

    def layers(self) -> Iterator[PlantedLayer]:
        """All layers, from the first."""
        density_L = self.drawing.statistics.density_L(self.spec.n_layers)
        for index, density in enumerate(density_L):
            p_N = firing_probabilities(
                self.spec.n_neurons, float(density), self.drawing.statistics.share80
            )
            with torch.no_grad():
                yield self._layer(index, np.random.default_rng([self.drawing.seed, index]), p_N)

    def _randn(self, rows: int, columns: int, *key: int) -> torch.Tensor:
        source = generator(self.device, self.drawing.seed, *key)
        return torch.randn((rows, columns), generator=source, device=self.device)

    def _layer(
        self, index: int, rng: np.random.Generator, p_N: NDArray[np.float64]
    ) -> PlantedLayer:
        spec = self.spec
        qkv, o = self._attention(index)
        x_MD = rms_norm(self._h_MD, spec.norm_eps)
        rho_M1 = x_MD[:, :1] / self.signal.constant
        v_RD = self._directions(index, x_MD / rho_M1)
        z_MR = (x_MD / rho_M1) @ v_RD.T
        p_N = rng.permutation(p_N)
        u_NR = self._unit_rows(index, spec.n_neurons, v_RD.shape[0], 20)
        a_MN = z_MR @ u_NR.T
        b_N = -self._cut(a_MN, p_N)
        fired_MN = a_MN.add_(b_N).clamp_(min=0)  # rho times this is the gate's relu
        counts_N = fired_MN.count_nonzero(dim=0).cpu().numpy().astype(np.int64)
        fc1, fc2, proposed, hit = self._predictor(index, p_N, z_MR, v_RD, u_NR, b_N, fired_MN)
        gate, up, down = self._neurons(index, x_MD, fired_MN.mul_(rho_M1), u_NR, v_RD, b_N)
        margin = 4 * float(torch.finfo(self.dtype).eps) + 4 * float(torch.finfo(torch.float16).eps)
        threshold = -margin if self.drawing.recall >= 1 else 0.0
        return PlantedLayer(qkv, o, gate, up, down, fc1, fc2, threshold, counts_N, proposed, hit)

    # -- attention -------------------------------------------------------------------------------
    def _attention(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random heads; adds what they write to the stream."""
        spec, drawing = self.spec, self.drawing
        rows = self._randn(spec.q_dim + 2 * spec.kv_dim, spec.d_model, index, 10)
        rows.mul_(1 / math.sqrt(spec.d_model))
        rows[: spec.q_dim].mul_(SHARPNESS)
        rows[:, 0] = 0
        qkv = rows.to(self.dtype)
        x = rms_norm(self._h_MD, spec.norm_eps).view(drawing.sequences, drawing.length, -1)
        read_MQ = attention(x, qkv, spec)
        scale = self._part / math.sqrt(max(1e-12, float(read_MQ.square().mean())) * spec.q_dim)
        o = self._randn(spec.d_model, spec.q_dim, index, 11).mul_(scale)
        o[0] = 0
        o = o.to(self.dtype)
        self._h_MD += read_MQ @ o.float().T
        return qkv, o

    # -- what decides whether a neuron fires -----------------------------------------------------
    def _directions(self, index: int, s_MD: torch.Tensor) -> torch.Tensor:
        """V [R, D], as the predictor stores it: z has mean square 1 over the calibration tokens."""
        rank = self.drawing.hidden - 1
        v_RD = self._randn(rank, self.spec.d_model, index, 21).mul_(self.spec.d_model**-0.5)
        v_RD[:, 0] = 0
        v_RD /= (s_MD @ v_RD.T).square().mean().sqrt()
        return v_RD.half().float()

    def _unit_rows(self, index: int, rows: int, rank: int, key: int) -> torch.Tensor:
        """Random rows of length 1 that sum to 0."""
        u = self._randn(rows, rank, index, key)
        u -= u.mean(dim=1, keepdim=True)
        u /= u.norm(dim=1, keepdim=True)
        return u.half().float()

    def _cut(self, a_MN: torch.Tensor, p_N: NDArray[np.float64]) -> torch.Tensor:
        """What each column exceeds with its probability: a Gaussian quantile, then corrected.

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

    def _predictor(
        self,
        index: int,
        p_N: NDArray[np.float64],
        z_MR: torch.Tensor,
        v_RD: torch.Tensor,
        u_NR: torch.Tensor,
        b_N: torch.Tensor,
        fired_MN: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """fc1, fc2, and how many neurons it proposes and hits over the calibration tokens."""
        rank, constant = v_RD.shape[0], self.signal.constant
        rows_NR, bias_N = u_NR, b_N
        proposed = hit = int(fired_MN.count_nonzero())
        if self.drawing.recall < 1 or self.drawing.precision < 1:
            noise = plan_noise(p_N, self.drawing.recall, self.drawing.precision)
            a_N1 = torch.from_numpy(noise.correlation_N).to(u_NR)[:, None]
            w_NR = self._unit_rows(index, len(p_N), rank, 22)
            w_NR -= (w_NR * u_NR).sum(dim=1, keepdim=True) * u_NR
            w_NR /= w_NR.norm(dim=1, keepdim=True)
            rows_NR = (a_N1 * u_NR + (1 - a_N1.square()).sqrt() * w_NR).half().float()
            y_MN = z_MR @ rows_NR.T
            bias_N = -self._cut(y_MN, noise.proposed_N)
            y_MN.add_(bias_N).clamp_(min=0)
            proposed = int(y_MN.count_nonzero())
            hit = int(y_MN.mul_(fired_MN).count_nonzero())
        fc1 = torch.zeros((rank + 1, self.spec.d_model), dtype=torch.float16, device=self.device)
        fc1[:rank] = v_RD.half()
        fc1[:rank, 0] = SHIFT / constant  # powers of two: exact
        fc1[rank, 0] = 1 / constant
        fc2 = torch.empty((len(p_N), rank + 1), dtype=torch.float16, device=self.device)
        fc2[:, :rank] = rows_NR.half()
        fc2[:, rank] = (bias_N - SHIFT * rows_NR.sum(dim=1)).half()
        return fc1, fc2, proposed, hit

    # -- the weights of the neurons ---------------------------------------------------------------
    def _neurons(
        self,
        index: int,
        x_MD: torch.Tensor,
        gate_MN: torch.Tensor,
        u_NR: torch.Tensor,
        v_RD: torch.Tensor,
        b_N: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gate, up and down rows [N, D]; adds what the neurons write to the stream."""
        n, d = len(u_NR), self.spec.d_model
        energy = float(gate_MN.square().sum(dim=1).mean())  # up . x is about a standard Gaussian
        scale = self._part / math.sqrt(max(energy, 1e-12))
        gate, up, down = (
            torch.empty((n, d), dtype=self.dtype, device=self.device) for _ in range(3)
        )
        written_MD = torch.zeros_like(x_MD)
        step = max(1, CHUNK_BYTES // (4 * d))
        for begin in range(0, n, step):
            part = slice(begin, min(n, begin + step))
            rows = u_NR[part] @ v_RD
            rows[:, 0] = b_N[part] / self.signal.constant
            gate[part] = rows.to(self.dtype)
            rows = self._randn(len(rows), d, index, 30, begin).mul_(d**-0.5)
            rows[:, 0] = 0
            up[part] = rows.to(self.dtype)
            hidden = gate_MN[:, part] * (x_MD @ rows.T)
            rows = self._randn(len(rows), d, index, 31, begin).mul_(scale)
            rows[:, 0] = 0
            down[part] = rows.to(self.dtype)
            written_MD += hidden @ rows
        self._h_MD += written_MD
        return gate, up, down


def _stride(count: int, row: int) -> int:
    """A stride that leaves about a million of count elements and visits every column of a row."""
    stride = max(1, count >> 20)
    while math.gcd(stride, row) > 1:
        stride += 1
    return stride


def _trust(seen: torch.Tensor, by_chance: torch.Tensor) -> float:
    """How far to believe a scatter: the share of it that chance does not explain."""
    return max(0.0, 1.0 - float(by_chance) / max(float(seen), 1e-12))
