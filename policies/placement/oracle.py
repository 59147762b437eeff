"""oracle: the best static choice in hindsight, from bitmaps of what really fired.

Ours, as a yardstick. It needs a recording of the very tokens that will be generated, such as
`hotcold profile --bitmaps` makes of a text (runtime/files/recording.py): an npz with the array
`fired_TLB`, uint8, which holds for each token and layer one bit a neuron, as
numpy.packbits(fired_TLN, axis=-1) gives them. The neurons that fired for most of these tokens go to
the GPU. What another policy loses against it is what its profile does not know; no policy can know
it in advance.

It ignores the exchange and the balance of the executors, like `greedy`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.files.recording import read_recording
from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class Oracle:
    """Hottest bytes first, by a recording of the run itself.

    Args:
        masks: path of the recording, or of its folder.
    """

    masks: str = ""

    def place(self, problem: Problem) -> Placement:
        """Fill the GPU by how often neurons fired in the recording.

        Raises:
            ConfigError: no recording, or one of another model.
        """
        count_LN, tokens = read_masks(self.masks, problem.shape)
        placement = problem.fill(count_LN / problem.neuron_bytes_L[:, None])
        objective = float(count_LN[placement.device_LN < problem.gpus].sum()) / max(tokens, 1)
        return Placement(
            placement.device_LN,
            placement.modules,
            note=f"in hindsight of {tokens} recorded tokens",
            figures={"objective": objective},
        )


def read_masks(path: str, shape: tuple[int, int]) -> tuple[NDArray[np.int64], int]:
    """How often each neuron fired in a recording [L, N], and its tokens.

    Raises:
        ConfigError: the file cannot be read or does not fit the model.
    """
    if not path:
        raise ConfigError("policy 'oracle' needs a recording: --set masks=FILE.npz")
    try:
        recording = read_recording(Path(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"recording {path} cannot be read: {error}") from error
    fired_TLB = recording.fired_TLB
    layers, neurons = shape
    wrong = recording.neurons not in (0, neurons)
    if wrong or fired_TLB.shape[1:] != (layers, -(-neurons // 8)):
        raise ConfigError(
            f"recording {path}: fired_TLB is {fired_TLB.dtype} {fired_TLB.shape}; this model needs "
            f"uint8 [tokens, {layers}, {-(-neurons // 8)}]"
        )
    count_LN = np.zeros(shape, np.int64)
    for bits_LB in fired_TLB:
        count_LN += np.unpackbits(bits_LB, axis=-1, count=neurons)
    return count_LN, len(fired_TLB)
