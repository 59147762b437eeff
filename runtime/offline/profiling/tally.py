"""Tally: what is counted while a model runs over text; additive, and saved between units.

Axes: L layers, N neurons, K numbers of neurons fired for a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.profiles.profile import ActivationProfile


@dataclass
class Tally:
    """Running sums of a profile.

    Args:
        counts_LN: tokens for which the neuron's gate was above 0.
        sums_LN: sum of the gate after its ReLU.
        tokens_LK: tokens for which exactly k neurons of the layer fired; K grows as needed.
        tokens: tokens counted.
    """

    counts_LN: NDArray[np.int64]
    sums_LN: NDArray[np.float64]
    tokens_LK: NDArray[np.int64]
    tokens: int = 0

    @classmethod
    def empty(cls, layers: int, neurons: int) -> "Tally":
        """Nothing counted yet."""
        shape = (layers, neurons)
        return cls(np.zeros(shape, np.int64), np.zeros(shape), np.zeros((layers, 1), np.int64))

    def add_layer(
        self,
        layer: int,
        counts_N: NDArray[np.int64],
        sums_N: NDArray[np.float64],
        fired_T: NDArray[np.int64],
    ) -> None:
        """Add some tokens of one layer; `tokens` is the caller's to raise.

        Args:
            layer: which.
            counts_N: how many of them each neuron fired for.
            sums_N: its gates after the ReLU, added up.
            fired_T: how many neurons fired for each token.
        """
        self.counts_LN[layer] += counts_N
        self.sums_LN[layer] += sums_N
        bins_K = np.bincount(fired_T)
        self._grow(len(bins_K))
        self.tokens_LK[layer, : len(bins_K)] += bins_K

    def add(self, other: "Tally") -> None:
        """Add another's tokens, of the same model."""
        self.counts_LN += other.counts_LN
        self.sums_LN += other.sums_LN
        width = other.tokens_LK.shape[1]
        self._grow(width)
        self.tokens_LK[:, :width] += other.tokens_LK
        self.tokens += other.tokens

    def _grow(self, width: int) -> None:
        missing = width - self.tokens_LK.shape[1]
        if missing > 0:
            self.tokens_LK = np.pad(self.tokens_LK, ((0, 0), (0, missing)))

    def profile(self, model: str, source: str) -> ActivationProfile:
        """What was counted, as a profile."""
        return ActivationProfile(
            self.counts_LN, self.tokens, model, source, self.sums_LN, self.tokens_LK
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for a file."""
        return {
            "counts_LN": self.counts_LN,
            "sums_LN": self.sums_LN,
            "tokens_LK": self.tokens_LK,
            "tokens": np.array([self.tokens]),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], layers: int, neurons: int) -> "Tally":
        """Inverse of arrays.

        Raises:
            ValueError: an array of another shape or type.
        """
        kinds = {"counts_LN": "<i8", "sums_LN": "<f8", "tokens_LK": "<i8", "tokens": "<i8"}
        for name, kind in kinds.items():
            if name not in arrays or arrays[name].dtype.str != kind:
                raise ValueError(f"{name} is missing or not {kind}")
        shapes = [arrays[name].shape for name in ("counts_LN", "sums_LN")]
        if shapes != [(layers, neurons)] * 2 or arrays["tokens_LK"].shape[:1] != (layers,):
            raise ValueError(f"counts of shape {shapes[0]}")
        counts, sums, tokens = (np.array(arrays[n]) for n in ("counts_LN", "sums_LN", "tokens_LK"))
        return cls(counts, sums, tokens, int(arrays["tokens"][0]))
