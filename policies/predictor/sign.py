"""The sign predictor: one bit of every gate weight, no training.

SparseInfer (Shin et al., 2024) predicts a gate's sign from the signs of its weights and inputs. Here
the weights keep their sign and the input some bits more, since the input is read once and a row for
every neuron: row g_i is taken as a_i * c * sign(g_i), c_d the mean magnitude of column d, and a_i
chosen so that what is left out is uncorrelated with the estimate (least squares over inputs
w * n, w the norm's weight and n the normalised residual, all elements of n alike).

As in low_rank.py: the constant of layer norms and gate biases is added exactly; what is left out of
row i, r_i, has the mean r_i . m and the spread |r_i|, m being the mean of n that the profile gives
away. The bias of a neuron is r_i . m + margin * |r_i|, and the margin of a layer is what makes the
expected recall the one asked for: with z = s + e, s the estimate, e ~ N(0, |r_i|) beside it,

    recall = sum_i P(s >= -margin |r_i|, s + e > 0) / sum_i P(s + e > 0)

An estimate from normal distributions: on text the recall differs by some points either way.

Reads D / 8 + 8 bytes a neuron and token, where fp16 gate rows are 2 D.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from hotcold.policies.predictor.low_rank import mean_input, probit
from hotcold.runtime.errors import ConfigError
from hotcold.runtime.predictor import F32, F64, ModelView
from hotcold.runtime.predictor_forms import MAX_INPUT_BITS, SignLayer
from hotcold.runtime.profile import ActivationProfile

_GRID = torch.linspace(-4.5, 4.5, 73, dtype=torch.float64)  # of a normal variable, in deviations
_FARTHEST = 8.0  # margins searched, in deviations of what is left out


@dataclass(frozen=True)
class Sign:
    """Score neurons by the signs of their gate weights.

    Args:
        recall: share of fired neurons to propose, as the profile lets expect; sets the margin.
        margin: how far proposals reach below zero, in standard deviations of what is left out;
            replaces recall.
        input_bits: bits an input is cut in; 1: its sign alone.
    """

    recall: float = 0.95
    margin: float | None = None
    input_bits: int = 6
    _layers: list[SignLayer] = field(default_factory=list, init=False, repr=False, compare=False)
    _density_L: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.recall < 1:
            raise ConfigError(f"predictor 'sign': recall is {self.recall}, must be within 0 and 1")
        if self.margin is not None and not math.isfinite(self.margin):
            raise ConfigError(f"predictor 'sign': margin is {self.margin}, must be finite")
        if not 1 <= self.input_bits <= MAX_INPUT_BITS:
            raise ConfigError(
                f"predictor 'sign': input_bits is {self.input_bits}, must be 1 to {MAX_INPUT_BITS}"
            )

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Take the signs of every gate matrix and calibrate: 0.3 s for the embedded model."""
        if profile is not None:
            profile.check_fits(model.spec)
        parts = [self._layer(model, profile, index) for index in range(model.spec.n_layers)]
        self._layers[:] = [layer for layer, _ in parts]
        self._density_L[:] = [density for _, density in parts]

    def scores(self, x_BD: F32, layer: int) -> F32:
        """Estimated gate pre-activations plus bias, [B, N]."""
        return self.native(layer).scores(x_BD)

    def native(self, layer: int) -> SignLayer:
        """The signs of a layer."""
        if not self._layers:
            raise ConfigError("predictor 'sign' is not prepared; call prepare(model, profile)")
        return self._layers[layer]

    def density(self, layer: int) -> float | None:
        """Share of neurons it expects to propose."""
        return self._density_L[layer] if self._density_L else None

    def _layer(
        self, model: ModelView, profile: ActivationProfile | None, index: int
    ) -> tuple[SignLayer, float]:
        """One layer's signs, and the density they should have."""
        gate_ND = model.gate_rows(index).astype(np.float64)
        weight_D = model.norm_weight(index).astype(np.float64)
        shift_D = model.norm_bias(index).astype(np.float64)
        constant_N = gate_ND @ shift_D + model.gate_biases(index)
        positive_ND = gate_ND > 0
        column_D = np.maximum(np.abs(gate_ND).mean(axis=0), 1e-30)
        basis_ND = np.where(positive_ND, column_D, -column_D)
        # Least squares over inputs weight * n: a_i = <g_i, c s_i> / |c|^2, weighted by weight^2.
        weight2_D = weight_D**2
        scale_N = (gate_ND * basis_ND) @ weight2_D / max(column_D**2 @ weight2_D, 1e-30)
        left_ND = gate_ND - scale_N[:, None] * basis_ND
        rows_ND = gate_ND * weight_D
        spread_N, left_N = np.linalg.norm(rows_ND, axis=1), np.linalg.norm(left_ND * weight_D, axis=1)
        # x holds the norm's bias, too: what the signs make of it is taken off again.
        bias_N = left_ND @ shift_D + model.gate_biases(index)
        mean_N = constant_N
        if profile is not None:
            mean_N = probit(profile.probabilities_LN[index]) * spread_N
            gram_DD = torch.from_numpy(rows_ND.T @ rows_ND)
            pulled_D = torch.from_numpy(rows_ND.T @ (mean_N - constant_N))
            bias_N += (left_ND * weight_D) @ mean_input(gram_DD, pulled_D).numpy()
        margin = self.margin
        if margin is None:
            margin = margin_for(self.recall, mean_N, spread_N, left_N)
        layer = SignLayer(
            pack_signs(positive_ND),
            scale_N.astype(np.float32),
            (bias_N + margin * left_N).astype(np.float32),
            column_D.astype(np.float32),
            self.input_bits,
            threshold=0.0,
        )
        return layer, expected(margin, mean_N, spread_N, left_N)[1]


def pack_signs(positive_ND: np.ndarray) -> np.ndarray:
    """Bits as SignLayer wants them: uint64 [N, W], the first weight lowest, zeros at the end."""
    n, d = positive_ND.shape
    padded = np.zeros((n, (d + 63) // 64 * 64), np.uint8)
    padded[:, :d] = positive_ND
    words: np.ndarray = np.packbits(padded, axis=1, bitorder="little").view("<u8")
    return np.ascontiguousarray(words.astype(np.uint64))


def expected(margin: float, mean_N: F64, spread_N: F64, left_N: F64) -> tuple[float, float]:
    """(recall, density) that normal distributions give a margin.

    Args:
        margin: in deviations of what the estimate leaves out.
        mean_N, spread_N: of the pre-activations.
        left_N: standard deviation of what is left out.
    """
    mean, spread, left = (torch.from_numpy(v)[:, None] for v in (mean_N, spread_N, left_N))
    left = torch.maximum(left, 1e-6 * spread).clamp_min(1e-30)
    estimate = mean + _GRID * (spread**2 - left**2).clamp_min(0).sqrt()
    fires = torch.special.ndtr(estimate / left)
    weight = torch.exp(-(_GRID**2) / 2)
    weight /= weight.sum()
    proposed = estimate >= -margin * left
    density = float((weight * proposed).sum(1).mean())
    found, whole = (weight * fires * proposed).sum(), (weight * fires).sum()
    return float(found / whole.clamp_min(1e-30)), density


def margin_for(recall: float, mean_N: F64, spread_N: F64, left_N: F64) -> float:
    """The least margin whose expected recall is the one asked for, by bisection."""
    low, high = -_FARTHEST, _FARTHEST
    for _ in range(24):
        middle = (low + high) / 2
        if expected(middle, mean_N, spread_N, left_N)[0] < recall:
            low = middle
        else:
            high = middle
    return high
