"""powerinfer-index: the neurons of a PowerInfer `.generated.gpuidx` file on the GPU.

All modules go to the GPU first, as PowerInfer's does; an index that does not fit then is refused.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.runtime.plan.problem import Placement, Problem, fill_modules
from hotcold.runtime.predictors.powerinfer_files import read_gpu_index


@dataclass(frozen=True)
class PowerinferIndex:
    """What a file says.

    Args:
        file: the index.
    """

    file: str = ""

    def place(self, problem: Problem) -> Placement:
        """Put the file's neurons on the GPU."""
        if not self.file:
            raise ConfigError("powerinfer-index needs its file; give --set file=PATH")
        on_gpu_LN = read_gpu_index(Path(self.file))
        if on_gpu_LN.shape != problem.shape:
            raise ConfigError(
                f"{self.file} is of {on_gpu_LN.shape[0]} layers of {on_gpu_LN.shape[1]} neurons, "
                f"the model has {problem.shape[0]} of {problem.shape[1]}"
            )
        device, host = problem.devices[0], problem.devices[-1]
        modules, _ = fill_modules(problem.modules, problem.budgets[device], device, host)
        device_LN = np.where(on_gpu_LN, 0, len(problem.devices) - 1).astype(np.int8)
        return Placement(device_LN, modules, note=f"as {Path(self.file).name} has it")
