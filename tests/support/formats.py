"""Placements whose hot and cold neurons are in different formats, and what is then computed."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from support.int8 import COLUMNS, requantised

from hotcold.native.abi.names import DTYPES

MIXES = {"hot int8": ("int8", None), "cold int8": (None, "int8"), "both int8": ("int8", "int8")}


@dataclass
class Mixed:
    """A random share of each layer's neurons on the GPU; formats by device, None: the model's."""

    hot: str | None = None
    cold: str | None = None
    share: float = 0.5

    def place(self, problem: Any) -> Any:
        """All modules on the GPU."""
        filled = problem.fill(np.zeros(problem.shape))
        device_LN = (np.random.default_rng(0).random(problem.shape) >= self.share).astype(np.int8)
        numbers = [DTYPES[name or problem.dtype] for name in (self.hot, self.cold)]
        return replace(
            filled,
            device_LN=device_LN,
            modules=dict.fromkeys(filled.modules, "gpu0"),
            dtype_LN=np.array(numbers, np.int8)[device_LN],
        )


def mixed_oracle(oracle: Any, plan: Any, gates_sent: bool = False) -> Any:  # noqa: ANN401
    """The oracle of the weights that a plan's executors compute with.

    gates_sent: the predictor evaluates gates, from the model's own records.
    """
    int8_LN = np.zeros(plan.shape, np.bool_)
    if plan.dtype_LN is not None:
        int8_LN = plan.dtype_LN == DTYPES["int8"]
    made = requantised(oracle, int8_LN)
    if not gates_sent:
        return made
    ups = ("mlp.up_proj.weight", *COLUMNS)
    kept = {n: t for n, t in oracle.tensors.items() if not n.endswith(ups)}
    return replace(made, tensors={**made.tensors, **kept})
