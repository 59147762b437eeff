"""Further native forms of predictors, beside matrices and gate rows: sign bits; a window of tokens.

A form is what the native loop can run (native/abi/predict.h); predictors return one from
native(layer). Each has the interface of PredictorLayer in predictor.py: threshold, input, arrays,
bytes, complaint, and, where the input alone decides, a readable reference of its scores. On a GPU
the window is refused (runtime/engine/prepare.py).

Axes: B tokens, D d_model, N neurons of a layer, W words of 64 signs, (D + 63) // 64.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from hotcold.runtime.model.spec import ModelSpec

F32 = npt.NDArray[np.float32]
InputKind = Literal["normed", "residual"]
INPUTS = ("normed", "residual")
MAX_INPUT_BITS = 8
MAX_WINDOW = 1 << 24


class NativeForm:
    """What all forms have: `arrays`, and what those take."""

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any] | None]:
        """What the kernels read, by their names for it (native/abi/predict.h)."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Numbers this layer adds to the model; a word of signs counts as one."""
        return sum(int(part.size) for part in self.arrays.values() if part is not None)

    @property
    def bytes(self) -> int:
        """Bytes of those, all of which are read for a token."""
        return sum(int(part.nbytes) for part in self.arrays.values() if part is not None)


@dataclass(frozen=True, eq=False)
class SignLayer(NativeForm):
    """One layer's gate signs, a bit a weight: scores = scale * (sign(w) . q) + bias.

    q is x * column in whole steps around zero, (2 u + 1 - 2^P) * m / 2^P with m the token's largest
    magnitude and u in 0 .. 2^P - 1; native/ops/sign.c has the arithmetic, which is in whole numbers
    up to the last two products: kernels and reference agree bit for bit.

    Args:
        signs_NW: uint64; bit d mod 64 of word d // 64 says that weight d is positive. Bits from
            d_model on are 0.
        scale_N: weight of a row's sum.
        bias_N: added to the scores, or None.
        column_D: factor of an input's elements.
        input_bits: P, 1 to 8; at 1 the scores are products of two sign vectors.
        threshold: a neuron is proposed where its score is at least this.
        input: as of PredictorLayer.
    """

    signs_NW: npt.NDArray[np.uint64]
    scale_N: F32
    bias_N: F32 | None
    column_D: F32
    input_bits: int
    threshold: float
    input: InputKind = "normed"
    form: ClassVar[str] = "sign"

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any] | None]:
        """What the kernels read, by their names for it."""
        return {name: getattr(self, name) for name in ("signs_NW", "scale_N", "bias_N", "column_D")}

    def scores(self, x_BD: F32) -> F32:
        """The readable reference of the native form, [B, N]."""
        half = np.float32(1 << (self.input_bits - 1))
        top = 2 * half - 1
        v_BD = np.asarray(x_BD, dtype=np.float32) * self.column_D
        largest_B = np.abs(v_BD).max(axis=1)
        inverse_B = np.divide(half, largest_B, out=np.zeros_like(largest_B), where=largest_B > 0)
        u_BD = np.fmin(np.fmax(np.floor(v_BD * inverse_B[:, None]) + half, 0), top)
        bits_ND = np.unpackbits(
            self.signs_NW.astype("<u8").view(np.uint8), axis=1, bitorder="little"
        )[:, : x_BD.shape[1]]
        signs_ND = 2.0 * bits_ND - 1.0
        sums_BN = (2.0 * u_BD.astype(np.float64) - float(top)) @ signs_ND.T  # whole: exact
        step_B = largest_B / (2 * half)
        scores_BN: F32 = sums_BN.astype(np.float32) * step_B[:, None] * self.scale_N
        if self.bias_N is not None:
            scores_BN = scores_BN + self.bias_N
        return scores_BN

    def complaint(self, spec: ModelSpec) -> str:
        """What does not fit a model; empty when everything does."""
        if not 1 <= self.input_bits <= MAX_INPUT_BITS:
            return f"input_bits is {self.input_bits}, must be 1 to {MAX_INPUT_BITS}"
        words = (spec.d_model + 63) // 64
        wrong = wrong_array(
            ("signs_NW", self.signs_NW, (spec.n_neurons, words), ("uint64",)),
            ("scale_N", self.scale_N, (spec.n_neurons,), ("float32",)),
            ("bias_N", self.bias_N, (spec.n_neurons,), ("float32",)),
            ("column_D", self.column_D, (spec.d_model,), ("float32",)),
        )
        spare = spec.d_model % 64
        if not wrong and spare and (self.signs_NW[:, -1] >> np.uint64(spare)).any():
            return f"signs_NW has bits set beyond the {spec.d_model} weights of a row"
        return wrong


@dataclass(frozen=True, eq=False)
class WindowLayer(NativeForm):
    """One layer of the predictor that remembers: what fired lately is proposed again.

    The score of neuron i for the token at position t of a context is prior_N[i], plus 1 where it
    fired at a position in [t - window, t), where (i + t) % probe_every is 0, and at t = 0. Only
    proposed neurons can be seen to fire, hence the probes. The loop evaluates the gates of what it
    proposes and sends them along (native/loop/window.c), so the input is always the layer's own.

    Args:
        window: tokens looked back.
        probe_every: one in so many neurons is proposed in turn; 0: none.
        prior_N: scores for any token, or None for zeros.
        threshold: a neuron is proposed where its score is at least this.
    """

    window: int
    probe_every: int
    prior_N: F32 | None
    threshold: float
    input: InputKind = "normed"
    form: ClassVar[str] = "window"

    @property
    def arrays(self) -> dict[str, npt.NDArray[Any] | None]:
        """What the kernels read, by their names for it."""
        return {"bias_N": self.prior_N}

    def scores_of(self, fires_TN: npt.NDArray[np.bool_]) -> F32:
        """The readable reference: scores [T, N] of a context's first T tokens.

        Args:
            fires_TN: whether each neuron fires; those not proposed are not looked at.
        """
        n = fires_TN.shape[1]
        last_N = np.full(n, -MAX_WINDOW - 1)
        prior_N = np.zeros(n, np.float32) if self.prior_N is None else self.prior_N
        scores_TN = np.empty(fires_TN.shape, np.float32)
        for t, fires_N in enumerate(fires_TN):
            again_N = (t - last_N <= self.window) | (t == 0)
            if self.probe_every:
                again_N |= (np.arange(n) + t) % self.probe_every == 0
            scores_TN[t] = prior_N + again_N.astype(np.float32)
            last_N[(scores_TN[t] >= np.float32(self.threshold)) & fires_N] = t
        return scores_TN

    def complaint(self, spec: ModelSpec) -> str:
        """What does not fit a model; empty when everything does."""
        for name in ("window", "probe_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 0 <= value <= MAX_WINDOW:
                return f"{name} is {value!r}, must be a whole number of 0 to {MAX_WINDOW}"
        if self.input != "normed":
            return f"input is {self.input!r}; a window evaluates gates, whose input is 'normed'"
        return wrong_array(("prior_N", self.prior_N, (spec.n_neurons,), ("float32",)))


def wrong_array(*checks: tuple[str, Any, tuple[int, ...], tuple[str, ...]]) -> str:
    """Which array of (name, array or None, shape, dtypes) is not as it must be; empty: none."""
    for name, array, shape, dtypes in checks:
        if array is None:
            continue
        found = f"of type {type(array).__name__}"
        if isinstance(array, np.ndarray):
            found = f"{array.dtype}{list(array.shape)}"
            if array.shape == shape and str(array.dtype) in dtypes and array.flags.c_contiguous:
                continue
        return f"{name} is {found}, must be C-contiguous {' or '.join(dtypes)}{list(shape)}"
    return ""
