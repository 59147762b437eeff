"""The GPU executor's GPU: whether there is one, what it must hold beside weights, how it is fed.

`prepare_model` asks `choose_gpu` once, on the driver's machine; the answer travels in the
deployment as plain data. Without a GPU, without a plug-in or with the Ray transport it is None, and
the GPU executor computes on its CPU device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native import cuda_plugin, nvml
from hotcold.native.device import DeviceArrays
from hotcold.runtime.config import EngineConfig
from hotcold.runtime.errors import BackendError
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.plan import Plan

HOT_CHUNKS = 64  # partial sums of the hot FFN; enough blocks to fill a large GPU
COLD_CHUNKS = 1  # the CPU executor's work is cut by neurons and columns (ops/ffn_tiles.c)
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
        cold_store: "file" or "private": where the CPU executor reads its neurons.
    """

    kv_dtype: str
    predictor_dtype: str | None
    vram_bytes: int
    reserve_bytes: int
    context_bytes: int
    cold_store: str = "file"

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
    if cuda_plugin.find() is None:
        return None
    gpu = nvml.gpus()[nvml.visible_index()]
    budget = vram_bytes or gpu.total_bytes - gpu.used_bytes - KEEP_FREE
    reserve = CONTEXT_BYTES + scratch_bytes(spec, context, config.max_batch)
    return GpuChoice(
        *(config.kv_dtype, config.predictor_dtype, budget, reserve, CONTEXT_BYTES),
        cold_store=config.cold_store,
    )


def scratch_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory of a pass beside weights and KV, rounded up; cuda/model.cu lays it out."""
    B = 1 << (max_batch - 1).bit_length()
    L, N, D = spec.n_layers, spec.n_neurons, spec.d_model
    per_token = HOT_CHUNKS * D + 4 * D + 2 * (spec.q_dim + spec.kv_dim) + spec.vocab_size + 2 * N
    tables = 2 * L * N + 8 * N + context * spec.head_dim + L * HOT_CHUNKS * 8
    return 4 * (B * per_token + tables) + (L * 24 + 64) * 256


def device_arrays(
    choice: GpuChoice, plan: Plan, predictors: Sequence[Any], predict_steps: NDArray[Any]
) -> DeviceArrays:
    """What the native side needs; compiles the plug-in where no one has yet.

    Raises:
        BackendError: there is no plug-in on this machine.
    """
    plugin = cuda_plugin.find()
    if plugin is None:
        raise BackendError("this deployment was made for a GPU, and none can be used here")
    layers, neurons = plan.shape
    finer = replace(plan, n_chunks=HOT_CHUNKS)
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
    )
