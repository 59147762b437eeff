"""The sign predictor: one bit of every gate weight, no training.

SparseInfer (Shin et al., 2024) predicts a gate's sign from the signs of weights and input. Here the
weights keep their sign and the input some bits more, since the input is read once and a row for
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

Measured on the embedded model over 2,044 tokens of prose, 10 % of neurons firing (ratio: perplexity
over the dense model's; weights read a decoded token, exact 22.6 MB, low-rank 20.6):

    input_bits  recall  density  ratio    read
         1       0.88     0.41   1.037   19.1 MB
         2       0.92     0.44   1.012   19.2
         4       0.97     0.41   1.001   19.0
         6       0.97     0.40   1.000   18.9    the default
         8       0.97     0.40   1.000   18.9
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.base import Prepared
from hotcold.policies.predictor.low_rank import each_layer, mean_input, probit
from hotcold.runtime.predictors.predictor import ModelView
from hotcold.runtime.predictors.predictor_forms import MAX_INPUT_BITS, SignLayer
from hotcold.runtime.profiles.profile import ActivationProfile

_GRID = torch.linspace(-4.5, 4.5, 73, dtype=torch.float64)  # of a normal variable, in deviations
_FARTHEST = 8.0  # margins used, in deviations of what is left out


@dataclass(frozen=True)
class Sign(Prepared[SignLayer]):
    """Score neurons by the signs of their gate weights.

    Args:
        recall: share of fired neurons to propose, as the profile lets expect; sets the margin.
        margin: how far proposals reach below zero, in standard deviations of what is left out;
            replaces recall.
        input_bits: bits an input is cut in; 1: its sign alone.
    """

    kind = "sign"
    recall: float = 0.95
    margin: float | None = None
    input_bits: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.recall < 1:
            raise ConfigError(f"predictor 'sign': recall is {self.recall}, must be within 0 and 1")
        if self.margin is not None and not math.isfinite(self.margin):
            raise ConfigError(f"predictor 'sign': margin is {self.margin}, must be finite")
        self.check(1, MAX_INPUT_BITS, "input_bits")

    def prepare(self, model: ModelView, profile: ActivationProfile | None = None) -> None:
        """Take the signs of every gate matrix and calibrate: 0.6 s for the embedded model."""
        if profile is not None:
            profile.check_fits(model.spec)
        parts = each_layer(model.spec.n_layers, lambda i: self._layer(model, profile, i))
        self._layers[:] = [layer for layer, _ in parts]
        self._density_L[:] = [density for _, density in parts]

    def _layer(
        self, model: ModelView, profile: ActivationProfile | None, index: int
    ) -> tuple[SignLayer, float]:
        gate_ND = torch.from_numpy(model.gate_rows(index)).double()
        # What is predicted is where pre-activations less their threshold are above 0.
        own_N = torch.from_numpy(model.gate_biases(index)).double()
        own_N -= model.spec.activation_threshold
        weight_D = torch.from_numpy(model.norm_weight(index)).double()
        shift_D = torch.from_numpy(model.norm_bias(index)).double()
        column_D = gate_ND.abs().mean(dim=0).clamp_min(1e-30)
        basis_ND = torch.where(gate_ND > 0, column_D, -column_D)
        # Least squares: a_i = <g_i, c s_i> / |c|^2, elements weighted by the input's variance.
        power_D = weight_D**2
        scale_N = (gate_ND * basis_ND) @ power_D / (column_D**2 @ power_D).clamp_min(1e-30)
        left_ND = gate_ND - scale_N[:, None] * basis_ND
        rows_ND = gate_ND * weight_D
        # x contains the norm's bias, too: its contribution is subtracted.
        bias_N = left_ND @ shift_D + own_N
        mean_N = constant_N = gate_ND @ shift_D + own_N
        spread_N, left_N = rows_ND.norm(dim=1), (left_ND * weight_D).norm(dim=1)
        if profile is not None:
            mean_N = torch.from_numpy(probit(profile.probabilities_LN[index])) * spread_N
            pulled_D = rows_ND.T @ (mean_N - constant_N)
            bias_N += (left_ND * weight_D) @ mean_input(rows_ND.T @ rows_ND, pulled_D)
        needed = NeededMargins(mean_N, spread_N, left_N)
        margin = needed.margin(self.recall) if self.margin is None else self.margin
        layer = SignLayer(
            pack_signs((gate_ND > 0).numpy()),
            scale_N.float().numpy(),
            (bias_N + margin * left_N).float().numpy(),
            column_D.float().numpy(),
            self.input_bits,
            threshold=0.0,
        )
        return layer, needed.density(margin)


def pack_signs(positive_ND: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Bits as SignLayer wants them: uint64 [N, W], the first weight lowest, zeros at the end."""
    n, d = positive_ND.shape
    padded = np.zeros((n, (d + 63) // 64 * 64), np.uint8)
    padded[:, :d] = positive_ND
    words_NW = np.packbits(padded, axis=1, bitorder="little").view("<u8")
    return np.ascontiguousarray(words_NW, dtype=np.uint64)


class NeededMargins:
    """What margin a neuron needs to be proposed, over normal distributions of its estimate.

    Args:
        mean_N, spread_N: mean and deviation of the pre-activations.
        left_N: deviation of what the estimate leaves out.
    """

    def __init__(self, mean_N: torch.Tensor, spread_N: torch.Tensor, left_N: torch.Tensor) -> None:
        mean, spread = mean_N[:, None], spread_N[:, None]
        left = torch.maximum(left_N[:, None], 1e-6 * spread).clamp_min(1e-30)
        estimate = mean + _GRID * (spread**2 - left**2).clamp_min(0).sqrt()
        chance = torch.exp(-(_GRID**2) / 2).expand_as(estimate)
        fires = (chance * torch.special.ndtr(estimate / left)).reshape(-1)
        needed = (-estimate / left).reshape(-1)
        order = needed.argsort(stable=True)
        self._needed = needed[order].numpy()
        self._fires = fires[order].cumsum(0).numpy()
        self._chance = chance.reshape(-1)[order].cumsum(0).numpy()

    def margin(self, recall: float) -> float:
        """The least margin with this share of what fires proposed."""
        at = int(np.searchsorted(self._fires, recall * self._fires[-1]))
        margin = float(self._needed[min(at, self._needed.size - 1)])
        return min(max(margin, -_FARTHEST), _FARTHEST)

    def density(self, margin: float) -> float:
        """Share of neurons proposed."""
        at = int(np.searchsorted(self._needed, margin, side="right"))
        return float(self._chance[at - 1] / self._chance[-1]) if at else 0.0
