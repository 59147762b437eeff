"""ffn-split: everything but some layers' neurons on the GPU, as llama.cpp's --n-cpu-ffn does.

All modules go to the GPU first, then the feed-forward parts of whole layers while they fit, the
last layers first, so that the first n stay on the CPU. It ignores the activation profile: hot and
cold neurons of a layer are never separated, and the GPU waits while the CPU computes a layer.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class FfnSplit:
    """All neurons of a layer, or none; the last layers first."""

    def place(self, problem: Problem) -> Placement:
        """Take whole layers' neurons from the end while they fit."""
        modules, room = problem.homes()
        layers, neurons = problem.shape
        hot_LN = np.zeros(problem.shape, np.bool_)
        for layer in reversed(range(layers)):
            room -= neurons * int(problem.neuron_bytes_L[layer])
            if room < 0:
                break
            hot_LN[layer] = True
        first = int((~hot_LN[:, 0]).sum())
        device_LN = problem.divide(hot_LN, modules)
        return Placement(device_LN, modules, note=f"the first {first} of {layers} layers on cpu")
