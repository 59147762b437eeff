"""The GPU executor's GPU: whether there is one, what it must hold beside weights, how it is fed.

`prepare_model` asks `choose_gpu` once, on the driver's machine; the answer travels in the
deployment as plain data. Without a GPU, without a plug-in or with the Ray transport it is None, and
the GPU executor computes on its CPU device.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import (
    DEVICE_GRANULE,
    GPU_MAX_HEAD_DIM,
    GPU_MAX_NEURONS,
    HOT_CHUNKS,
)
from hotcold.native.abi.names import PARTS
from hotcold.native.errors import BackendError, BudgetError, ConfigError
from hotcold.native.gpu import cuda_plugin, cuda_probe, nvml
from hotcold.runtime.engine import remote_predictor
from hotcold.runtime.engine.cuda_variant import variant_library
from hotcold.runtime.engine.gpu_memory import model_shape, predicted_layers
from hotcold.runtime.engine.prompt import choose_rows
from hotcold.runtime.engine.variant import Variant
from hotcold.runtime.exchange.transports import SHARES_MEMORY
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.fetch import computed_plan, fetched
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.units import format_bytes

logger = logging.getLogger(__name__)

CONTEXT_BYTES = 600 << 20  # context, kernels and graphs, where they could not be measured
KEEP_FREE = 256 << 20  # of a GPU used without a budget


@dataclass(frozen=True)
class GpuChoice:
    """How a deployment uses its GPU.

    Args:
        predictor_dtype: None, or "int8".
        vram_bytes: memory all our processes may take on the device, contexts included.
        reserve_bytes: part of it that weights and KV cannot have: context and scratch.
        context_bytes: the part of context, kernels and graphs, as measured on this GPU.
        used_before: bytes in use on the device before the launch, by whomever.
        visible: CUDA_VISIBLE_DEVICES of the driver.
        prompt_form: "auto", "dense" or "sparse".
        prompt_rows: tokens of a dense prompt pass; 0: all prompts are sparse.
        predictor_process: "fused", or "mps": one of its own on the same GPU (remote_predictor.py).
        predictor_bytes: what that one takes beside its matrices and its context.
        widen_bytes: what dense prompts take beside, where a plan has int8 neurons of a float model.
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
    predictor_process: str = "fused"
    predictor_bytes: int = 0
    widen_bytes: int = 0

    @property
    def remote_predictor(self) -> bool:
        """Whether the predictor has a process of its own on the GPU."""
        return self.predictor_process == "mps"

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
    kernels: Variant | str | None = None,
) -> GpuChoice | None:
    """The GPU to use, or None for the CPU device.

    vram_bytes None: what is free. layers: of the predictor, in their native forms; lookahead: how
    many layers predictions are ahead, at most.

    Raises:
        BackendError: HOTCOLD_CUDA=require and it cannot be had.
        ConfigError: a predictor with a process of its own, which this machine cannot have.
        BudgetError: the budget is less than every plan needs, or more than the GPU has free.
    """
    if not SHARES_MEMORY[config.transport]:
        if cuda_plugin.mode() == "require":
            raise BackendError("the ray transport computes on the CPU device; use native")
        return None
    plugin, gpu = cuda_plugin.find(), nvml.visible()
    if plugin is None or gpu is None:
        remote_predictor.check_gpu(config, "no GPU or no plug-in for it, or HOTCOLD_CUDA=off")
        return None
    if missing := unsupported(spec):
        remote_predictor.check_gpu(config, f"the kernels do not serve {missing}")
        if cuda_plugin.mode() == "require":
            raise BackendError(f"the GPU kernels do not serve {missing}; set HOTCOLD_CUDA=auto")
        logger.warning("running on the CPU device: the GPU kernels do not serve %s", missing)
        return None
    for name in ("gpu_executors", "cpu_executors"):
        if (count := getattr(config, name)) > 1:
            raise ConfigError(
                f"{name} {count}: beside a GPU there is one; choose {name} 1, or set "
                "HOTCOLD_CUDA=off"
            )
    if config.sequences > 1:
        raise ConfigError(
            f"sequences {config.sequences}: a GPU runs one; choose sequences 1, or set "
            "HOTCOLD_CUDA=off"
        )
    forms = {layer.form for layer in layers} - {"gate"}  # which stands by on a GPU
    if remote_predictor.wanted(config):
        remote_predictor.check_mps(forms)
    free = gpu.total_bytes - gpu.used_bytes
    budget = free - KEEP_FREE if vram_bytes is None else vram_bytes
    context_bytes = _context_bytes(plugin.path, config, spec, kernels)
    early = min(max(1, lookahead, _asked_depth(config)), spec.n_layers)  # a schedule goes with any
    remote, int8 = remote_predictor.wanted(config), config.predictor_dtype == "int8"
    shape = model_shape(
        *(spec, context, config.max_batch),
        predicted_layers(spec, layers if forms else (), early, int8),
        head_on_host=True,
        audit_every=config.audit if forms else 0,
        predictor_i8=int8,
        remote_predictor=remote,
    )

    def need(rows: int) -> int:
        return shape.with_rows(rows).executor().reserve

    rows = choose_rows("sparse" if remote else config.prompt_form, context, budget, need)
    predictor_bytes = shape.predictor().reserve + 2 * DEVICE_GRANULE if remote else 0
    choice = GpuChoice(
        kv_dtype=config.kv_dtype,
        predictor_dtype=config.predictor_dtype,
        vram_bytes=budget,
        reserve_bytes=context_bytes + need(rows) + predictor_bytes,
        context_bytes=context_bytes,
        used_before=gpu.used_bytes,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        prompt_form=config.prompt_form,
        prompt_rows=rows,
        predictor_process=config.predictor_process,
        predictor_bytes=predictor_bytes,
        widen_bytes=replace(shape, widens=True).with_rows(rows).executor().reserve - need(rows),
    )
    check_budget(choice, free)
    return choice


def _context_bytes(
    plugin: Path, config: EngineConfig, spec: ModelSpec, kernels: Variant | str | None
) -> int:
    """Device memory of the contexts of all our processes, measured; else what they may take."""
    remote = remote_predictor.wanted(config)
    nodes, graphs = cuda_probe.graph_shape(spec.n_layers, config.max_batch)
    second = cuda_probe.predictor_nodes(spec.n_layers) if remote else 0
    measured = cuda_probe.context_bytes(plugin, nodes, graphs, second, _cuda_variant(kernels))
    return CONTEXT_BYTES * (2 if remote else 1) if measured is None else measured


def _asked_depth(config: EngineConfig) -> int:
    """Layers by which a schedule is asked to predict early, where its settings say so."""
    depth = config.settings.get("schedule.depth", 0)
    return int(depth) if str(depth).isdecimal() else 0


def unsupported(spec: ModelSpec) -> str:
    """What of a model the GPU kernels have no code for; empty: nothing."""
    found = {
        f"heads of more than {GPU_MAX_HEAD_DIM} elements": spec.head_dim > GPU_MAX_HEAD_DIM,
        f"layers of more than {GPU_MAX_NEURONS} neurons": spec.n_neurons > GPU_MAX_NEURONS,
        "biases of attention alone": bool(spec.attention_biases),
        "norms of queries and keys": spec.qk_norm,
        "scaled embeddings": spec.embed_scale != 1,
        f"the dense activation {spec.activation}": spec.fires_all,
    }
    return ", ".join(name for name, there in found.items() if there)


def with_formats(choice: GpuChoice, plan: Plan, computed: Plan) -> GpuChoice:
    """The choice under a plan: without dense prompts, if int8 neurons have no room to be widened.

    computed: the plan as the executors compute it (fetch.py).
    """
    used = plan.bytes_by_device[plan.devices[0]]
    if not computed.format_text(0) or used + choice.widen_bytes <= choice.room:
        return choice
    if choice.prompt_rows:
        logger.warning(
            "prompts stay sparse: dense ones widen int8 neurons, which takes %s more of the GPU "
            "than the plan leaves; raise --vram",
            format_bytes(used + choice.widen_bytes - choice.room),
        )
    return replace(choice, prompt_rows=0)


def check_budget(choice: GpuChoice, free_bytes: int) -> None:
    """Refuse a budget below the minimum: what is left when everything that can move is on the host.

    Raises:
        BudgetError: with the minimum; or the GPU has not as much free as the budget promises.
    """
    if choice.room < 0:
        raise BudgetError(
            f"this model needs at least {choice.reserve_bytes} bytes of GPU memory "
            f"({format_bytes(choice.reserve_bytes)}: {format_bytes(choice.context_bytes)} CUDA "
            "contexts, the rest norms, tables and the scratch of a pass), the budget is "
            f"{choice.vram_bytes}; raise --vram, lower --context, or set HOTCOLD_CUDA=off"
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
        BackendError: this process does not see the GPU any more.
    """
    changed = replace(choice, vram_bytes=vram_bytes)
    gpu = nvml.visible()
    if gpu is None:
        raise BackendError("the GPU is no longer visible; launch the engine again")
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
    """What the plan leaves in host memory for the GPU to read over the bus; None: nothing.

    uint8 [L + 1] of PARTS, the head's in the last entry.
    """
    layers, _ = plan.shape
    parts_L = np.zeros(layers + 1, np.uint8)
    for name, home in plan.modules.items():
        kind, _, layer = name.partition(".")
        if home != plan.devices[0] and kind in PARTS:
            parts_L[int(layer) if layer else layers] |= PARTS[kind]
    return parts_L if parts_L.any() else None


def say_parts(plan: Plan) -> None:
    """Tell the user which modules did not fit on the GPU, and what that means."""
    if host_parts(plan) is not None:
        logger.warning(
            "these parts do not fit the GPU's budget and are read over the bus, token by token: %s",
            plan.modules_on(plan.devices[-1]),
        )


def show_gpu(choice: GpuChoice) -> None:
    """Let this process see the driver's GPUs; Ray hides them from actors that reserve none."""
    if choice.visible is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = choice.visible


def device_arrays(
    choice: GpuChoice,
    plan: Plan,
    fetch_L: Sequence[float],
    predictors: Sequence[Any],
    predict_steps: NDArray[Any],
    kernels: Variant | str | None = None,
    pass_flag: int = 0,
) -> dict[str, Any]:
    """What NativeDevice takes; compiles plug-in and CUDA variant where no one has yet.

    fetch_L: shares of the cold neurons that the GPU reads over the bus (fetch.py). predictors: of
    every layer, or none; predict_steps: their program. pass_flag: of the exchange, by which a
    predictor with its own process learns of passes.

    Raises:
        BackendError: there is no plug-in on this machine.
    """
    show_gpu(choice)
    plugin = cuda_plugin.find()
    if plugin is None:
        raise BackendError("this deployment was made for a GPU, and none can be used here")
    layers, neurons = plan.shape
    own = remote_predictor.matrix_bytes(plan) if choice.remote_predictor else 0
    own += choice.predictor_bytes  # 0 where the predictor is fused
    computed = computed_plan(plan, fetch_L)
    bounds_LC = np.stack([computed.bounds(layer, 0, HOT_CHUNKS) for layer in range(layers)])
    if neurons >= 32 * HOT_CHUNKS:  # whole words of proposals: the split need not count inside one
        bounds_LC = np.minimum((bounds_LC + 16) // 32 * 32, neurons)
        bounds_LC[:, -1] = neurons
    return {
        "plugin": plugin.path,
        "kv_f16": choice.kv_dtype == "float16",
        "predictor_i8": bool(predictors) and choice.predictor_dtype == "int8",
        "n_chunks": HOT_CHUNKS,
        "bounds_LC": bounds_LC.astype(np.int32),
        "vram_bytes": choice.vram_bytes - choice.context_bytes - own,
        "predictors_L": predictors,
        "predict_steps": predict_steps if predictors else None,
        "n_predict_steps": len(predict_steps) if predictors else 0,
        "launch_overlap": True,
        "bus_LN": fetched(plan.device_LN, fetch_L).astype(np.uint8) if any(fetch_L) else None,
        "host_parts_L": host_parts(plan),
        "prompt_rows": choice.prompt_rows,
        "variant": _cuda_variant(kernels),
        "remote_predictor": choice.remote_predictor,
        "pass_flag": pass_flag if choice.remote_predictor else 0,
    }


def _cuda_variant(kernels: Variant | str | None) -> Path | None:
    """The library of a CUDA variant; None where the kernels are others."""
    return variant_library(kernels) if isinstance(kernels, Variant) and kernels.on_gpu else None
