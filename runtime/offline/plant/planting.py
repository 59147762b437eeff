"""The construction: weights of a layer whose neurons fire as often as asked.

What a neuron reads is x, the residual stream behind a norm. Its row is

    gate_i = (b_i / constant) on channel 0  +  u_i V on the others,    |u_i| = 1, V [R, D] random

so that gate_i . x = rho (b_i + u_i . z), with z = V s about a standard Gaussian and rho = x_0 /
constant > 0. A positive factor never changes whether a neuron fires, so the only number to choose
is b_i, the quantile of u_i . z (see `firing`). Channel 0 holds the constant in one of two ways:

- RMS norm (Llama). Every embedding has it and no layer writes it; the norm scales the stream as a
  whole, s is the stream itself and rho what the norm scales by. The norm need not be calibrated.
- Layer norm (OPT, Falcon). It takes the mean out and so mixes every channel into channel 0; a
  constant of the stream would be one no longer. But it has a bias: weight 0 and bias `constant`
  on channel 0 give x_0 = constant for any input, exactly. Then rho = 1, s is x without channel 0,
  whose length the norm has fixed, and the stream itself holds nothing on channel 0.

Models whose neurons have biases (OPT) carry b_i there, and nothing on channel 0 of the row; the
constant then serves the predictor alone. Everything else is random, scaled so that all layers
together add a fixed share to the stream's energy: inputs look alike at every depth, and no decoding
drifts away. Ungated neurons write sums of positive numbers; where a block has output biases, they
take its mean out again.

Axes: M calibration tokens, N neurons, D channels, R rank.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.offline.plant.drawing import ROWS, Drawing, PlantedLayer
from hotcold.runtime.offline.plant.firing import Firing, decide, guess
from hotcold.runtime.offline.plant.forward import Norm, attention
from hotcold.runtime.offline.plant.signal import Signal, make_signal, randn
from hotcold.runtime.offline.plant.statistics import firing_probabilities

STRENGTH = 0.5  # standard deviation that all layers together add to a stream of 1
SHARPNESS = 2.0  # standard deviation of attention scores: a few tokens matter, not all or one
BIAS = 0.1  # standard deviation of the biases of queries, keys and values
CHUNK_BYTES = 256 << 20
Tensors = dict[str, torch.Tensor]


class Planter:
    """Makes a model's tensors, a layer at a time; `layers` must be walked once and in order."""

    def __init__(self, drawing: Drawing, device: torch.device) -> None:
        self.drawing, self.device = drawing, device
        self.spec = drawing.spec
        self.dtype: torch.dtype = getattr(torch, self.spec.dtype)
        self.signal: Signal = make_signal(
            self.spec, self.dtype, device, drawing.seed, drawing.correlation, drawing.drift
        )
        self._h_MD = self.signal.stream(drawing.sequences, drawing.length, drawing.seed)
        self._part = STRENGTH / math.sqrt(2 * self.spec.n_layers)
        plain = Norm.plain(self.spec, device)
        entry = plain if self.spec.norm == "rms" else plain.with_constant(self.signal.constant)
        self._entry = entry  # the norm that x comes out of
        first = (entry, plain) if self.spec.post_norm else (plain, entry)
        self._attention_norm, self._ffn_norm = first

    def layers(self) -> Iterator[PlantedLayer]:
        """All layers, from the first."""
        density_L = self.drawing.statistics.density_L(self.spec.n_layers)
        for index, density in enumerate(density_L):
            p_N = firing_probabilities(
                self.spec.n_neurons, float(density), self.drawing.statistics.share80
            )
            rng = np.random.default_rng([self.drawing.seed, index])
            with torch.no_grad():
                yield self._layer(index, rng.permutation(p_N))

    def ends(self) -> Tensors:
        """What is not part of a layer, by a bundle's names."""
        named = self.signal.tensors()
        if self.spec.final_norm:
            named |= Norm.plain(self.spec, self.device).tensors("final_norm")
        return named

    def _randn(self, rows: int, columns: int, *key: int) -> torch.Tensor:
        return randn(self.device, rows, columns, self.drawing.seed, *key)

    def _held(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.dtype).float()

    def _layer(self, index: int, p_N: NDArray[np.float64]) -> PlantedLayer:
        constant = self.signal.constant
        tensors = self._attention(index)
        if self.spec.post_norm:
            self._h_MD = self._attention_norm(self._h_MD)
        x_MD = self._h_MD if self.spec.post_norm else self._ffn_norm(self._h_MD)
        rho_M1 = x_MD[:, :1] / constant
        firing = decide(self.drawing, index, x_MD / rho_M1, p_N)
        counts_N = firing.fired_MN.count_nonzero(dim=0).cpu().numpy().astype(np.int64)
        found = guess(self.drawing, index, firing, constant)
        firing.fired_MN.mul_(rho_M1)  # what the neurons' ReLUs let through
        tensors |= self._neurons(index, x_MD, firing)
        if self.spec.post_norm:
            self._h_MD = self._ffn_norm(self._h_MD)
        tensors |= self._attention_norm.tensors("attention_norm")
        tensors |= self._ffn_norm.tensors("ffn_norm")
        return PlantedLayer(tensors, found, counts_N)

    def _written(self, name: str, written_MD: torch.Tensor) -> Tensors:
        """Add a block's output to the stream, less its mean where the block has a bias for it."""
        if not self.spec.biases:
            self._h_MD += written_MD
            return {}
        bias_D = self._held(-written_MD.mean(dim=0))
        bias_D[0] = 0
        self._h_MD += written_MD.add_(bias_D)
        return {name: bias_D}

    def _attention(self, index: int) -> Tensors:
        spec, drawing = self.spec, self.drawing
        rows = self._randn(spec.q_dim + 2 * spec.kv_dim, spec.d_model, index, 10)
        rows.mul_(1 / math.sqrt(spec.d_model))
        rows[: spec.q_dim].mul_(SHARPNESS)
        rows[:, 0] = 0
        qkv, bias = rows.to(self.dtype), None
        del rows  # gigabytes in the largest shapes
        if spec.biases:
            bias = self._held(self._randn(1, len(qkv), index, 12)[0].mul_(BIAS))
        x_MD = self._h_MD if spec.post_norm else self._attention_norm(self._h_MD)
        x_SMD = x_MD.view(drawing.sequences, drawing.length, -1)
        read_MQ = attention(x_SMD, qkv, bias, spec)
        scale = self._part / math.sqrt(max(1e-12, float(read_MQ.square().mean())) * spec.q_dim)
        o = self._randn(spec.d_model, spec.q_dim, index, 11).mul_(scale)
        o[0] = 0
        o = o.to(self.dtype)
        named = {"qkv": qkv, "o": o}
        named |= self._written("o_bias", read_MQ @ o.float().T)
        return named if bias is None else {**named, "qkv_bias": bias}

    def _neurons(self, index: int, x_MD: torch.Tensor, firing: Firing) -> Tensors:
        """Rows [N, D] and biases; adds what the neurons write to the stream."""
        spec, gate_MN = self.spec, firing.fired_MN
        n, d = len(firing.u_NR), spec.d_model
        energy = float(gate_MN.square().sum(dim=1).mean())  # up . x is about a standard Gaussian
        scale = self._part / math.sqrt(max(energy, 1e-12))
        made = {
            part: torch.empty((n, d), dtype=self.dtype, device=self.device)
            for part in ROWS
            if part != "up" or spec.gated
        }
        written_MD = torch.zeros_like(x_MD)
        step = max(1, CHUNK_BYTES // (4 * d))
        for begin in range(0, n, step):
            part = slice(begin, min(n, begin + step))
            rows = firing.u_NR[part] @ firing.v_RD
            rows[:, 0] = 0 if spec.biases else firing.b_N[part] / self.signal.constant
            made["gate"][part] = rows.to(self.dtype)
            hidden = gate_MN[:, part]
            if "up" in made:
                rows = self._randn(len(rows), d, index, 30, begin).mul_(d**-0.5)
                rows[:, 0] = 0
                made["up"][part] = rows.to(self.dtype)
                hidden = hidden * (x_MD @ rows.T)
            rows = self._randn(len(rows), d, index, 31, begin).mul_(scale)
            rows[:, 0] = 0
            made["down"][part] = rows.to(self.dtype)
            written_MD += hidden @ rows
        made |= self._written("ffn_bias", written_MD)
        return {**made, "bias": firing.b_N} if spec.biases else made
