"""How good a prediction was: counted exactly from masks, or estimated from a running engine.

PredictionAudit compares masks with what fired and is used wherever a predictor is judged.
RecallEstimate turns the counters of native/loop/audit.c (native/cuda/kernels/split.cu on a GPU),
which looks at a sample of the neurons that were left out, into a recall with its standard error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PredictionAudit:
    """How a prediction compares with what fired, as counts of (token, neuron) pairs; additive."""

    both: int = 0
    proposed: int = 0
    fired: int = 0
    total: int = 0

    @classmethod
    def of(cls, proposed: npt.NDArray[np.bool_], fired: npt.NDArray[np.bool_]) -> "PredictionAudit":
        """Compare two masks of the same shape."""
        if proposed.shape != fired.shape:
            raise ValueError(f"masks of shapes {proposed.shape} and {fired.shape} do not compare")
        both = int(np.count_nonzero(proposed & fired))
        return cls(both, int(proposed.sum()), int(fired.sum()), fired.size)

    def __add__(self, other: "PredictionAudit") -> "PredictionAudit":
        return PredictionAudit(
            self.both + other.both,
            self.proposed + other.proposed,
            self.fired + other.fired,
            self.total + other.total,
        )

    @property
    def recall(self) -> float:
        """Share of the fired neurons that were proposed; 1 where none fired."""
        return self.both / self.fired if self.fired else 1.0

    @property
    def precision(self) -> float:
        """Share of the proposed neurons that fired; 1 where none was proposed."""
        return self.both / self.proposed if self.proposed else 1.0

    @property
    def density(self) -> float:
        """Share of all neurons that were proposed."""
        return self.proposed / self.total if self.total else 0.0


BLOCKS = 8
F64 = npt.NDArray[np.float64]
Part = TypeVar("Part")


def ratio_error(parts_G: npt.ArrayLike, wholes_G: npt.ArrayLike) -> F64:
    """Standard error of sum(parts) / sum(wholes), pairs being drawn independently; nan for one.

    Further axes are several ratios. A draw with a whole of 0 is none.
    """
    parts_G, wholes_G = np.asarray(parts_G, np.float64), np.asarray(wholes_G, np.float64)
    count, whole = (wholes_G > 0).sum(0), wholes_G.sum(0)
    with np.errstate(all="ignore"):
        squares = np.square(parts_G - parts_G.sum(0) / whole * wholes_G).sum(0)
        error: F64 = np.sqrt(squares * count / (count - 1)) / whole
    return error


def blocks_of(parts: Sequence[Part]) -> list[Sequence[Part]]:
    """A text's parts, in its order, as BLOCKS of neighbours: those are alike, blocks hardly."""
    ends = [len(parts) * block // BLOCKS for block in range(BLOCKS + 1)]
    return [parts[begin:end] for begin, end in pairwise(ends)]


def recall_error(audits: Sequence[PredictionAudit]) -> float:
    """Standard error of a text's recall, of its parts in order, by its blocks; nan for one part."""
    blocks = [sum(block, PredictionAudit()) for block in blocks_of(audits)]
    return float(ratio_error([one.both for one in blocks], [one.fired for one in blocks]))


@dataclass(frozen=True)
class RecallEstimate:
    """Recall of a running predictor, from a sample of what it left out.

    Args:
        fired: (token, neuron) pairs that were proposed and fired; all of them are seen.
        missed: pairs of the sample that were not proposed and would have fired.
        every: each pair that was not proposed is in the sample with probability 1 / every.
    """

    fired: int
    missed: int
    every: int

    @property
    def recall(self) -> float:
        """Fired / (fired + every * missed); 1 where nothing fired."""
        total = self.fired + self.every * self.missed
        return self.fired / total if total else 1.0

    @property
    def standard_error(self) -> float:
        """Of the recall of this very run, by the delta method; 0 where nothing was left to chance.

        The number missed has the variance every * (every - 1) * missed, draws being independent
        (nearly: native/loop/audit.c says what is left out; on a GPU the tokens of a prompt's block
        share their draws, decoded ones do not).
        Without a single miss in the sample, that of one miss is taken.
        """
        total = self.fired + self.every * self.missed
        if not total:
            return 0.0
        deviation = math.sqrt(self.every * (self.every - 1) * max(1, self.missed))
        return self.fired / total**2 * deviation

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the recall."""
        reach = 1.96 * self.standard_error
        return max(0.0, self.recall - reach), min(1.0, self.recall + reach)
