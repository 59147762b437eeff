"""layer-split: whole layers on the GPU, as llama.cpp's --n-gpu-layers does.

A layer is on the GPU with its attention, its KV cache and all of its neurons, or not at all; the
last layers come first, then, as in llama.cpp, the head once every layer fits. It ignores the
activation profile, and so the difference between hot and cold neurons: the baseline that the paper
compares with. Unlike in llama.cpp, the GPU executor here computes every layer's attention and reads
what is not on the GPU from host memory. Several GPU executors have whole layers each, but for their
attention, which is the first one's.
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
        owner_L = np.full(problem.shape[0], problem.gpus)
        rooms = [problem.budgets[gpu] for gpu in problem.devices[: problem.gpus]]

        def take(layer: int | None, neurons: int) -> bool:
            """Put the modules of a layer, or of none, and its neurons on GPUs if they fit."""
            own = [module for module in problem.modules if module.layer == layer]
            labels = {module.must_share_device for module in own} - {None}
            group = [m for m in problem.modules if m in own or m.must_share_device in labels]
            group = [module for module in group if homes[module.name] == host]
            size = sum(module.bytes for module in group)
            for owner, room in enumerate(rooms):
                if neurons > room - size * (owner == 0) or size > rooms[0]:
                    continue
                rooms[owner] -= neurons
                rooms[0] -= size
                homes.update({module.name: device for module in group})
                if layer is not None:
                    owner_L[layer] = owner
                return True
            return False

        layers, count = problem.shape
        for layer in reversed(range(layers)):
            if not take(layer, count * int(problem.neuron_bytes_L[layer])):
                break
        take(None, 0)
        split = int((owner_L < problem.gpus).sum())
        device_LN = problem.divide(np.zeros(problem.shape, np.bool_), homes)  # of the other layers
        device_LN = np.where(owner_L[:, None] < problem.gpus, owner_L[:, None], device_LN)
        device_LN = device_LN.astype(np.int8)
        return Placement(device_LN, homes, note=f"the last {split} of {layers} layers on the GPU")
