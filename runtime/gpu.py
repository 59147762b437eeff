"""The GPU executor's GPU: whether there is one, what it must hold beside weights, how it is fed.

`prepare_model` asks `choose_gpu` once, on the driver's machine; the answer travels in the
deployment as plain data. Without a GPU, without a plug-in or with the Ray transport it is None, and
the GPU executor computes on its CPU device.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native import cuda_plugin, cuda_probe, nvml
from hotcold.native.device import PART_BITS, DeviceArrays
from hotcold.runtime.config import EngineConfig
from hotcold.runtime.cuda_variant import variant_library
from hotcold.runtime.errors import BackendError, BudgetError, ConfigError
from hotcold.runtime.fetch import computed_plan, fetched
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.plan import Plan
from hotcold.runtime.prompt import PIECE_ROWS, choose_rows, id_bytes, prompt_bytes, sparse_only
from hotcold.runtime.units import format_bytes
from hotcold.runtime.variant import Variant

logger = logging.getLogger(__name__)

HOT_CHUNKS = 64  # partial sums of the hot FFN; enough blocks to fill a large GPU
COLD_CHUNKS = 28  # pieces of the CPU executor's work; see native/ops/ffn.c
MAX_HEAD_DIM, MAX_NEURONS = 256, 32768
ATTENTION_PIECE = 256  # positions that decode attention sums up on their own; native/cuda/kernels.h
CONTEXT_BYTES = 600 << 20  # context, kernels and graphs, where they could not be measured
KERNELS_A_LAYER = 12  # of a graph, at most; see native/cuda/graph.cu
KEEP_FREE = 256 << 20  # of a GPU used without a budget


@dataclass(frozen=True)
class GpuChoice:
    """How a deployment uses its GPU.

    Args:
        kv_dtype: of the KV cache.
        predictor_dtype: None, or "int8".
        vram_bytes: memory all our processes may take on the device, contexts included.
        reserve_bytes: part of it that weights and KV cannot have: context and scratch.
        context_bytes: the part of context, kernels and graphs, as measured on this GPU.
        used_before: bytes in use on the device before the launch, by whomever.
        visible: CUDA_VISIBLE_DEVICES of the driver.
        prompt_form: "auto", "dense" or "sparse".
        prompt_rows: tokens of a dense prompt pass; 0: all prompts are sparse.
    """

    kv_dtype: str
    predictor_dtype: str | None
    vram_bytes: int
    reserve_bytes: int
    context_bytes: int
    used_before: int = 0
    visible: str | None = None
    prompt_form: str = "auto"
    prompt_rows: int = 0

    @property
    def room(self) -> int:
        """Bytes for weights, predictors and KV."""
        return self.vram_bytes - self.reserve_bytes


def choose_gpu(
    config: EngineConfig,
    spec: ModelSpec,
    context: int,
    vram_bytes: int | None,
    layers: Sequence[Any] = (),
    lookahead: int = 0,
) -> GpuChoice | None:
    """The GPU to use, or None for the CPU device.

    Args:
        config: what the user asked for.
        spec: the model.
        context: positions of the KV cache.
        vram_bytes: the budget, or None for what is free.
        layers: of the predictor, in their native forms.
        lookahead: layers that predictions are ahead, at most.

    Raises:
        BackendError: HOTCOLD_CUDA=require and it cannot be had.
        ConfigError: dense prompts were asked for, which this model cannot have.
        BudgetError: the budget is less than every plan needs, or more than the GPU has free.
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
    free = gpu.total_bytes - gpu.used_bytes
    budget = free - KEEP_FREE if vram_bytes is None else vram_bytes
    graphs = graph_shape(spec.n_layers, config.max_batch)
    context_bytes = cuda_probe.context_bytes(plugin.path, *graphs) or CONTEXT_BYTES
    shared = pass_bytes(spec, config.max_batch)
    forms = {layer.form for layer in layers} - {"gate"}  # which stands by on a GPU
    widths = (layer.fc1.shape[0] for layer in layers if layer.form == "matrices")
    hidden = max(widths, default=0)

    def need(rows: int) -> int:
        int8 = config.predictor_dtype == "int8"
        early = max(1, lookahead)  # the schedule lookahead goes with any predictor
        return prompt_bytes(spec, rows, hidden, early + 1, int8)

    rows = choose_rows(_served_form(config.prompt_form, spec, forms), context, budget, shared, need)
    scratch = max(shared, need(rows)) + id_bytes(spec) if rows else shared
    choice = GpuChoice(
        kv_dtype=config.kv_dtype,
        predictor_dtype=config.predictor_dtype,
        vram_bytes=budget,
        reserve_bytes=context_bytes + scratch + table_bytes(spec, context, config.max_batch),
        context_bytes=context_bytes,
        used_before=gpu.used_bytes,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        prompt_form=config.prompt_form,
        prompt_rows=rows,
    )
    check_budget(choice, free)
    return choice


def _served_form(form: str, spec: ModelSpec, forms: Iterable[str]) -> str:
    """The form of prompts that was asked for, or sparse where a model has no other."""
    missing = sparse_only(spec, forms)
    if missing and form == "dense":
        raise ConfigError(
            f"the dense prompt form does not serve {missing}; choose --prompt-form sparse"
        )
    return "sparse" if missing else form


def graph_shape(n_layers: int, max_batch: int) -> tuple[int, int]:
    """Kernels of a pass's graph, at most, and how many graphs there are: one a power of two."""
    return KERNELS_A_LAYER * n_layers + 8, (max_batch - 1).bit_length() + 1


def unsupported(spec: ModelSpec) -> str:
    """What of a model the GPU kernels have no code for; empty: nothing."""
    found = {
        f"heads of more than {MAX_HEAD_DIM} elements": spec.head_dim > MAX_HEAD_DIM,
        f"layers of more than {MAX_NEURONS} neurons": spec.n_neurons > MAX_NEURONS,
    }
    return ", ".join(name for name, there in found.items() if there)


def check_budget(choice: GpuChoice, free_bytes: int) -> None:
    """Refuse a budget below the minimum: what is left when everything that can move is on the host.

    Raises:
        BudgetError: with the minimum; or the GPU has not as much free as the budget promises.
    """
    if choice.room < 0:
        raise BudgetError(
            f"this model needs at least {choice.reserve_bytes} bytes of GPU memory "
            f"({format_bytes(choice.context_bytes)} of it the CUDA context, the rest norms, tables "
            f"and the scratch of a pass), the budget is {choice.vram_bytes}; raise --vram, lower "
            "--context, or set HOTCOLD_CUDA=off"
        )
    if choice.vram_bytes > free_bytes:
        raise BudgetError(
            f"the budget is {format_bytes(choice.vram_bytes)} of GPU memory, of which "
            f"{format_bytes(free_bytes)} are free; lower --vram, or end what else holds the GPU's "
            "memory"
        )


def with_vram(choice: GpuChoice, vram_bytes: int) -> GpuChoice:
    """The same choice under another budget.

    Raises:
        BudgetError: as `check_budget`.
    """
    changed = replace(choice, vram_bytes=vram_bytes)
    gpu = nvml.gpus()[nvml.visible_index()]
    check_budget(changed, gpu.total_bytes - choice.used_before)
    return changed


def check_promise(choice: GpuChoice, when: str) -> int:
    """Bytes in use on the device beyond those before the launch; a warning where they are too many.

    Only a warning, because the count is of all processes: another may have come since.
    """
    used = (nvml.used_bytes() or 0) - choice.used_before
    if used > choice.vram_bytes:
        logger.warning(
            "GPU memory in use %s is %s more than before the launch, the budget is %s; if no other "
            "program took it, lower --vram by the difference",
            *(when, format_bytes(used), format_bytes(choice.vram_bytes)),
        )
    return used


def host_parts(plan: Plan) -> NDArray[np.uint8] | None:
    """Modules that the plan leaves in host memory, where the GPU reads them over the bus.

    Returns:
        uint8 [L + 1] of PART_BITS, the head's in the last entry; None where there are none.
    """
    layers, _ = plan.shape
    parts_L = np.zeros(layers + 1, np.uint8)
    for name, home in plan.modules.items():
        kind, _, layer = name.partition(".")
        if home != plan.devices[0] and kind in PART_BITS:
            parts_L[int(layer) if layer else layers] |= PART_BITS[kind]
    return parts_L if parts_L.any() else None


def say_parts(plan: Plan) -> None:
    """Tell the user which modules did not fit on the GPU, and what that means."""
    if host_parts(plan) is not None:
        logger.warning(
            "these parts do not fit the GPU's budget and are read over the bus, token by token: %s",
            plan.modules_on(plan.devices[-1]),
        )


def int8_bytes(layer: Any, spec: ModelSpec) -> int:
    """Bytes of a predictor layer quantised by row: weights, scales, bias."""
    if layer.form == "sign":
        return int(layer.bytes)  # a bit a weight already
    width = int(layer.fc1.shape[0])
    bias = 0 if layer.bias_N is None else int(layer.bias_N.nbytes)
    return width * (spec.d_model + spec.n_neurons) + 4 * (width + spec.n_neurons) + bias


def show_gpu(choice: GpuChoice) -> None:
    """Let this process see the driver's GPUs; Ray hides them from actors that reserve none."""
    if choice.visible is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = choice.visible


def pass_bytes(spec: ModelSpec, max_batch: int) -> int:
    """Device memory of a sparse pass that a dense one may use too, rounded up."""
    B = 1 << (max_batch - 1).bit_length()
    D, N = spec.d_model, spec.n_neurons
    per_token = HOT_CHUNKS * D + 5 * D + 2 * (spec.q_dim + spec.kv_dim) + 2 * N + spec.embed_width
    return 4 * B * per_token


def table_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory beside weights, KV and passes, rounded up; cuda/model.cu lays it out."""
    B = 1 << (max_batch - 1).bit_length()
    L, N, D = spec.n_layers, spec.n_neurons, spec.d_model
    tables = 2 * L * N + 12 * N + context * spec.head_dim + L * HOT_CHUNKS * 8
    norms = (2 * L + 1) * D
    attention = attention_bytes(spec, context, max_batch)
    return 4 * (B * spec.vocab_size + tables + norms) + (L * 24 + 64) * 256 + attention


def attention_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory of decode attention's sums a piece of the positions, rounded up."""
    rows = spec.n_heads << (max_batch - 1).bit_length()
    pieces = -(-context // ATTENTION_PIECE)
    sums = rows * pieces * (spec.head_dim + 2) if pieces > 1 else 0
    return 4 * (rows + sums) + 3 * 256


def scratch_bytes(spec: ModelSpec, context: int, max_batch: int) -> int:
    """Device memory beside weights and KV without a dense prompt form, rounded up."""
    return pass_bytes(spec, max_batch) + table_bytes(spec, context, max_batch)


def device_arrays(
    choice: GpuChoice,
    plan: Plan,
    fetch_L: Sequence[float],
    predictors: Sequence[Any],
    predict_steps: NDArray[Any],
    kernels: Variant | str | None = None,
) -> DeviceArrays:
    """What the native side needs; compiles plug-in and CUDA variant where no one has yet.

    Args:
        choice: how the GPU is used.
        plan: who owns what.
        fetch_L: shares of the cold neurons that the GPU reads over the bus (fetch.py).
        predictors: of every layer, or none.
        predict_steps: the predictor's program.
        kernels: a CUDA variant of one's own, if any.

    Raises:
        BackendError: there is no plug-in on this machine.
    """
    show_gpu(choice)
    plugin = cuda_plugin.find()
    if plugin is None:
        raise BackendError("this deployment was made for a GPU, and none can be used here")
    layers, neurons = plan.shape
    finer = replace(computed_plan(plan, fetch_L), n_chunks=HOT_CHUNKS)
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
        bus_LN=fetched(plan.device_LN, fetch_L).astype(np.uint8) if any(fetch_L) else None,
        host_parts_L=host_parts(plan),
        prompt_rows=choice.prompt_rows,
        piece_rows=min(PIECE_ROWS, neurons),
        variant=variant_library(kernels)
        if isinstance(kernels, Variant) and kernels.on_gpu
        else None,
    )
