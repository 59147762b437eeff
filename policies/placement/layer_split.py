"""layer-split: whole layers on the GPU, as llama.cpp's --n-gpu-layers does.

A layer is on the GPU with its attention, its KV cache and all of its neurons, or not at all; the
last layers come first, then, as in llama.cpp, the head once every layer fits. It ignores the
activation profile, and so the difference between hot and cold neurons: the baseline that the paper
compares with. Unlike in llama.cpp, the GPU executor here computes every layer's attention and reads
what is not on the GPU from host memory.
"""

from dataclasses import dataclass

import numpy as np

from hotcold.runtime.plan.problem import Placement, Problem


@dataclass(frozen=True)
class LayerSplit:
    """As many whole layers as fit, the last ones first."""

    def place(self, problem: Problem) -> Placement:
        """Take layers from the end while they fit."""
        device, host = problem.devices[0], problem.devices[-1]
        homes = {module.name: host for module in problem.modules}
        device_LN = np.full(problem.shape, len(problem.devices) - 1, np.int8)
        room = problem.budgets[device]

        def take(layer: int | None, neurons: int) -> bool:
            """Put the modules of a layer, or of none, and its neurons on the GPU if they fit."""
            nonlocal room
            own = [module for module in problem.modules if module.layer == layer]
            labels = {module.must_share_device for module in own} - {None}
            group = [m for m in problem.modules if m in own or m.must_share_device in labels]
            group = [module for module in group if homes[module.name] == host]
            size = neurons + sum(module.bytes for module in group)
            if size > room:
                return False
            room -= size
            homes.update({module.name: device for module in group})
            return True

        layers, count = problem.shape
        for layer in reversed(range(layers)):
            if not take(layer, count * int(problem.neuron_bytes_L[layer])):
                break
            device_LN[layer] = 0
        take(None, 0)
        split = int((device_LN[:, 0] == 0).sum())
        return Placement(device_LN, homes, note=f"the last {split} of {layers} layers on the GPU")
