"""PredictionAudit: recall, precision and density of a prediction against what fired.

Used wherever a predictor is judged; it counts masks and knows nothing of how they were made.
"""

from dataclasses import dataclass

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
