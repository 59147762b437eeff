"""What an exchange adds to a pass that is captured in a GPU's graph.

Measured as the difference of whole passes, because it only exists inside a graph: a pass with one
cold neuron in every layer less a pass with none. That includes x to the host, both flags, the CPU
executor's polling, its one neuron (about a microsecond), y back, and the merge. Called by
gpu_rates.py for the table of the hardware profile (whose figure is the exchange alone) and by
`hotcold bench hop`.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import BackendError, ConfigError
from hotcold.native.gpu import cuda_plugin
from hotcold.runtime.tracing.phases import pass_lengths

GENERATIONS, TOKENS = 5, 48


@dataclass(frozen=True)
class Passes:
    """Decoding passes of a model: seconds of each, bytes of one, layers, width."""

    seconds: NDArray[np.float64]
    bytes: int
    layers: int
    width: int

    @property
    def median_s(self) -> float:
        """Median of the passes."""
        return float(np.median(self.seconds))


@dataclass(frozen=True)
class _AllBut:
    cold: int

    def place(self, problem: Any) -> Any:
        """Modules where they usually are, the neurons that always fire to the host."""
        score_LN = np.ones(problem.shape)
        placement = problem.fill(score_LN)
        hottest_LN = np.argsort(-problem.activations_LN, axis=1)[:, : self.cold]
        device_LN = np.zeros(problem.shape, np.int8)
        np.put_along_axis(device_LN, hottest_LN, 1, axis=1)
        return type(placement)(device_LN, placement.modules)


def passes(cold: int, model: str | os.PathLike[str] | None = None) -> Passes:
    """Decode with everything on the GPU but so many neurons of each layer.

    Raises:
        BackendError: the model does not run on the GPU.
    """
    from hotcold.runtime.engine.deployment import deploy, solve
    from hotcold.runtime.engine.executors.session import LocalSession
    from hotcold.runtime.engine.prepare import prepare_model
    from hotcold.runtime.engine.request import make_request
    from hotcold.runtime.options.config import EngineConfig, Sampling

    prepared = prepare_model(EngineConfig(model=model, predictor="exact"))
    plan = solve(prepared, _AllBut(cold))
    lengths = []
    with LocalSession(deploy(prepared, plan)) as local:
        gpu = local.leader
        if gpu.native.device is None:
            raise BackendError("the model did not run on the GPU")
        for seed in range(GENERATIONS):
            request = make_request([1, 2, 3], Sampling(TOKENS, seed=seed), prepared.context)
            for _ in gpu.generate(request):
                pass
            lengths.append(pass_lengths(local.segment, gpu.request_times().prompt_ns))
        report = gpu.native.device.report()
    spec = prepared.bundle.spec
    return Passes(np.concatenate(lengths[1:]), report.bytes, spec.n_layers, spec.d_model)


def check_model(model: str | os.PathLike[str] | None) -> None:
    """Refuse a model whose passes cannot be measured here, before anything is measured.

    Raises:
        ConfigError: one is named and there is no GPU to run it on.
    """
    if model is not None and cuda_plugin.find() is None:
        raise ConfigError(
            f"--model {str(model)!r:.200} says whose passes to measure on a GPU, and there is none "
            "here that can be used; leave it out, or see hotcold doctor"
        )


def exchange(model: str | os.PathLike[str] | None = None) -> dict[str, Any] | None:
    """Microseconds a layer that the exchange adds, there and back: p50_us, p99_us.

    None where there is no GPU to measure on; `model` is as in `passes`.

    Raises:
        BackendError: there is one, and the model does not run on it.
    """
    if cuda_plugin.find() is None:
        return None
    without, with_one = passes(0, model), passes(1, model)
    added_s = (with_one.seconds - without.median_s) / without.layers
    p50, p99 = (float(value) * 1e6 for value in np.percentile(added_s, [50, 99]))
    return {
        "p50_us": p50,
        "p99_us": p99,
        "layers": without.layers,
        "width": without.width,
        "passes": len(with_one.seconds),
    }
