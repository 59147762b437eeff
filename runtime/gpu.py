"""The GPU executor's GPU: whether there is one, what it must hold beside weights, how it is fed.

`prepare_model` asks `choose_gpu` once, on the driver's machine; the answer travels in the
deployment as plain data. Without a GPU, without a plug-in or with the Ray transport it is None, and
the GPU executor computes on its CPU device.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native import cuda_plugin, cuda_probe, nvml
from hotcold.native.device import DeviceArrays
from hotcold.runtime.config import EngineConfig
from hotcold.runtime.cuda_variant import variant_library
from hotcold.runtime.errors import BackendError, BudgetError
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.plan import Plan
from hotcold.runtime.units import format_bytes
from hotcold.runtime.variant import Variant

logger = logging.getLogger(__name__)

HOT_CHUNKS = 64  # partial sums of the hot FFN; enough blocks to fill a large GPU
COLD_CHUNKS = 28  # pieces of the CPU executor's work; see native/ops/ffn.c
MAX_HEAD_DIM, MAX_NEURONS = 256, 32768
CONTEXT_BYTES = 560 << 20  # a CUDA context with these kernels loaded, where it was not measured
KEEP_FREE = 256 << 20  # of a GPU used without a budget


@dataclass(frozen=True)
class GpuChoice:
    """How a deployment uses its GPU.

    Args:
        kv_dtype: of the KV cache.
        predictor_dtype: None, or "int8".
        vram_bytes: memory all our processes may take on the device, contexts included.
        reserve_bytes: part of it that weights and KV cannot have: context and scratch.
        context_bytes: the context's part of that.
        bus_share: part of the host's neurons that the GPU reads over the bus and computes.
        visible: CUDA_VISIBLE_DEVICES of the driver.
    """

    kv_dtype: str
    predictor_dtype: str | None
    vram_bytes: int
    reserve_bytes: int
    context_bytes: int
    bus_share: float = 0.0
    visible: str | None = None

    @property
    def room(self) -> int:
        """Bytes for weights, predictors and KV."""
        return self.vram_bytes - self.reserve_bytes


def choose_gpu(
    config: EngineConfig, spec: ModelSpec, context: int, vram_bytes: int | None
) -> GpuChoice | None:
    """The GPU to use, or None for the CPU device.

    Raises:
        BackendError: HOTCOLD_CUDA=require and it cannot be had.
    """
    if config.transport == "ray":
        if cuda_plugin.mode() == "require":
            raise BackendError("the ray transport computes on the CPU device; use native")
        return None
    plugin = cuda_plugin.find()
    if plugin is None:
        return None
    if missing := unsupported(spec):
        if cuda_plugin.mode() == "require":
            raise BackendError(f"the GPU kernels do not serve {missing}; set HOTCOLD_CUDA=auto")
        logger.warning("running on the CPU device: the GPU kernels do not serve %s", missing)
        return None
    gpu = nvml.gpus()[nvml.visible_index()]
    budget = vram_bytes or gpu.total_bytes - gpu.used_bytes - KEEP_FREE
    context_bytes = cuda_probe.context_bytes(plugin.path) or CONTEXT_BYTES
    return GpuChoice(
        kv_dtype=config.kv_dtype,
        predictor_dtype=config.predictor_dtype,
        vram_bytes=budget,
        reserve_bytes=context_bytes + scratch_bytes(spec, context, config.max_batch),
        context_bytes=context_bytes,
        bus_share=config.bus_share,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def unsupported(spec: ModelSpec) -> str:
    """What of a model the GPU kernels have no code for; empty: nothing."""
    found = {
        f"heads of more than {MAX_HEAD_DIM} elements": spec.head_dim > MAX_HEAD_DIM,
        f"layers of more than {MAX_NEURONS} neurons": spec.n_neurons > MAX_NEURONS,
    }
    return ", ".join(name for name, there in found.items() if there)


def check_room(choice: GpuChoice, module_bytes: int) -> None:
    """Refuse a budget that cannot hold what must be on the GPU.

    Raises:
        BudgetError: with the minimum.
    """
    if module_bytes > choice.room:
        need = module_bytes + choice.reserve_bytes
        raise BudgetError(
            f"this model needs at least {format_bytes(need)} of GPU memory "
            f"({format_bytes(choice.context_bytes)} of it the CUDA context, "
            f"{format_bytes(module_bytes)} attention, head, predictors and KV), the budget is "
            f"{format_bytes(choice.vram_bytes)}; raise --vram, lower --context, use a float16 KV "
            "cache or int8 predictors, or set HOTCOLD_CUDA=off"
        )


def show_gpu(choice: GpuChoice) -> None:
    """Let this process see the driver's GPUs; Ray hides them from actors that reserve none."""
    if choice.visible is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = choice.visible


def scratch_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory of a pass beside weights and KV, rounded up; cuda/model.cu lays it out."""
    B = 1 << (max_batch - 1).bit_length()
    L, N, D = spec.n_layers, spec.n_neurons, spec.d_model
    per_token = HOT_CHUNKS * D + 5 * D + 2 * (spec.q_dim + spec.kv_dim) + spec.vocab_size + 2 * N
    per_token += spec.embed_width
    tables = 2 * L * N + 8 * N + context * spec.head_dim + L * HOT_CHUNKS * 8
    return 4 * (B * per_token + tables) + (L * 24 + 64) * 256


def bus_mask(choice: GpuChoice, plan: Plan) -> NDArray[np.bool_]:
    """Which of the host's neurons the GPU computes, [L, N]: evenly spread, the same everywhere."""
    on_host_LN = plan.device_LN != 0
    rank_LN = np.cumsum(on_host_LN, axis=1)
    steps_LN = np.floor(rank_LN * choice.bus_share)
    chosen_LN: NDArray[np.bool_] = steps_LN > np.floor((rank_LN - 1) * choice.bus_share)
    chosen_LN &= on_host_LN
    return chosen_LN


def shared_plan(choice: GpuChoice, plan: Plan) -> Plan:
    """The plan as the executors compute it: neurons read over the bus are the GPU's."""
    if not choice.bus_share:
        return plan
    return replace(plan, device_LN=np.where(bus_mask(choice, plan), 0, plan.device_LN))


def device_arrays(
    choice: GpuChoice,
    plan: Plan,
    predictors: Sequence[Any],
    predict_steps: NDArray[Any],
    kernels: Variant | str | None = None,
) -> DeviceArrays:
    """What the native side needs; compiles plug-in and CUDA variant where no one has yet.

    Raises:
        BackendError: there is no plug-in on this machine.
    """
    show_gpu(choice)
    plugin = cuda_plugin.find()
    if plugin is None:
        raise BackendError("this deployment was made for a GPU, and none can be used here")
    layers, neurons = plan.shape
    finer = replace(shared_plan(choice, plan), n_chunks=HOT_CHUNKS)
    bounds_LC = np.stack([finer.bounds(layer, 0) for layer in range(layers)])
    if neurons >= 32 * HOT_CHUNKS:  # whole words of proposals: the split need not count inside one
        bounds_LC = np.minimum((bounds_LC + 16) // 32 * 32, neurons)
        bounds_LC[:, -1] = neurons
    return DeviceArrays(
        plugin=plugin.path,
        bounds_LC=bounds_LC.astype(np.int32),
        predictors=predictors,
        predict_steps=predict_steps if predictors else None,
        kv_dtype=choice.kv_dtype,
        predictor_dtype=choice.predictor_dtype if predictors else None,
        vram_bytes=choice.vram_bytes - choice.context_bytes,
        bus_LN=bus_mask(choice, plan).astype(np.uint8) if choice.bus_share else None,
        variant=variant_library(kernels)
        if isinstance(kernels, Variant) and kernels.on_gpu
        else None,
    )
