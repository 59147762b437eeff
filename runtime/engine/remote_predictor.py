"""The predictor in a process of its own on the GPU, under MPS: what it takes, when it cannot be.

The measured alternative to the fused form, in which the GPU executor predicts in its own graph. The
price is a second CUDA context and the daemon's, out of the same budget, and a round trip of some
microseconds a layer; the gain is that prediction runs beside the executor's other kernels where it
is early. `choose_gpu` (gpu.py) asks here; the kernels are native/cuda/executor/remote_ask.cu and
remote_predictor.cu.
"""

from collections.abc import Collection

from hotcold.native.errors import ConfigError
from hotcold.native.gpu import mps
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.plan import Plan

FUSED = "choose predictor_process fused"


def wanted(config: EngineConfig) -> bool:
    """Whether the predictor shall have a process of its own on the GPU."""
    return config.predictor_process == "mps"


def check_gpu(config: EngineConfig, missing: str) -> None:
    """ConfigError where it was asked for and there is no GPU to share; missing: why not."""
    if wanted(config):
        raise ConfigError(
            f"predictor_process 'mps' shares a GPU, and this deployment uses none ({missing}); "
            f"{FUSED}"
        )


def check_mps(forms: Collection[str]) -> None:
    """ConfigError where there is nothing to run in that process, or nothing to run it under.

    forms: of the predictor's layers, those that a GPU has kernels for.
    """
    if not forms:
        raise ConfigError(
            "predictor_process 'mps' has nothing to run: with this predictor the executors go "
            f"gate-first; choose one that estimates (learned, low-rank, sign), or {FUSED}"
        )
    if mps.control_path() is None:
        raise ConfigError(
            f"predictor_process 'mps' needs {mps.CONTROL}, which is not on PATH; install the "
            f"driver's compute utilities, or {FUSED}"
        )


def matrix_bytes(plan: Plan) -> int:
    """Bytes of the predictors that the plan has on the GPU."""
    gpu = plan.devices[0]
    return sum(
        plan.module_bytes[name]
        for name, home in plan.modules.items()
        if name.startswith("predictor.") and home == gpu
    )
