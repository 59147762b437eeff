"""What a planted model is drawn from, and one layer of it: data shared by the steps of planting.

`options` makes a Drawing from what the user asked for, `planting` turns it into PlantedLayers,
`writers` puts them on disk.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.statistics import Statistics

ROWS = ("gate", "up", "down")  # parts of a neuron, one row each (down transposed)


@dataclass(frozen=True)
class Drawing:
    """What a model is drawn from.

    A predictor of recall and precision 1 is exact; `sequences` of `length` tokens calibrate.
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

    @property
    def tokens(self) -> int:
        """Calibration tokens."""
        return self.sequences * self.length

    @property
    def exact(self) -> bool:
        """Whether the predictor is to propose what fires and nothing else."""
        return self.recall >= 1 and self.precision >= 1


@dataclass(frozen=True)
class Guess:
    """A layer's predictor and how it did on the calibration tokens.

    Args:
        fc1, fc2: its matrices [H, D] and [N, H], float16.
        threshold: of its logits.
        proposed, hit: neurons proposed over all tokens, and those of them that fired.
    """

    fc1: torch.Tensor
    fc2: torch.Tensor
    threshold: float
    proposed: int
    hit: int


@dataclass(frozen=True)
class PlantedLayer:
    """One layer, on the device it was made on.

    Args:
        tensors: by the names a bundle has for them after `layers.{i}.`, with the neurons as `gate`,
            `up` and `down` [N, D] and `bias` [N], those the model has; matrices in the model's
            dtype, norms and biases in float32 with values the model's dtype can hold.
        guess: its predictor.
        counts_N: calibration tokens for which each neuron fired.
    """

    tensors: dict[str, torch.Tensor]
    guess: Guess
    counts_N: NDArray[np.int64]
