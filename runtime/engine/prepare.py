"""Preparing: the first half of launching an engine, before anybody owns a neuron.

Resolves the model, chooses the predictor and the GPU, and states the placement problem. What comes
out, `Prepared`, is what plans are made from (deployment.py). No Ray in here.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from hotcold.native.bindings.kernels import cpu_variants
from hotcold.native.errors import BackendError, ConfigError
from hotcold.runtime.engine.cuda_variant import prepare_cuda_variant
from hotcold.runtime.engine.gpu import GpuChoice, choose_gpu, with_vram
from hotcold.runtime.engine.variant import Variant, is_variant_file, prepare_variant
from hotcold.runtime.hardware.this_machine import chosen_hardware
from hotcold.runtime.model.checkpoints.bundle import Bundle, resolve_model
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.options.config import DEFAULT_CONTEXT, EngineConfig
from hotcold.runtime.plan.problem import Problem, make_problem
from hotcold.runtime.plan.work import ModelWork, predict_work, predictor_bytes
from hotcold.runtime.plugins.run import policy_name
from hotcold.runtime.plugins.settings import split_settings
from hotcold.runtime.predictors.predictor import (
    ModelView,
    NativeLayer,
    Predictor,
    expected_density_L,
    predictor_parameters,
    predicts,
    trained_lookahead,
)
from hotcold.runtime.predictors.predictor_choice import choose_auto, choose_predictor
from hotcold.runtime.predictors.preparing import prepare_predictor
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.units import parse_budgets
from hotcold.runtime.weights.weights import WeightStore

WITH_GATE = ("gate", "window")  # forms that send gate pre-activations along


@dataclass(frozen=True)
class Prepared:
    """A model and its predictor, resolved once; plans are made from it."""

    config: EngineConfig
    bundle: Bundle
    profile: ActivationProfile | None
    problem: Problem
    work: ModelWork
    predicts: bool
    residual_input: bool
    with_gate: bool
    context: int
    remembers: bool = False
    kernels: Variant | str | None = None
    predictor: Any = "exact"
    note: str = ""
    predictor_bytes_L: tuple[int, ...] = ()
    predictor_parameters: int = 0
    lookahead: int = 0
    gpu: GpuChoice | None = None


def prepare_kernels(kernels: str | None) -> Variant | str | None:
    """What an engine's actors compute with: the option, else a file that HOTCOLD_CPU names.

    Returns:
        A tested variant, the name of a built-in one, or None where nothing was asked for here
        (HOTCOLD_CPU with a built-in name reaches the C code by itself).

    Raises:
        ConfigError, BackendError: a file that cannot be used, or an unknown name.
    """
    name = kernels or os.environ.get("HOTCOLD_CPU") or None
    if name is not None and name.endswith(".cu"):
        return prepare_cuda_variant(name)
    if name is not None and is_variant_file(name):
        return prepare_variant(name)
    if kernels is not None and kernels not in cpu_variants():
        raise BackendError(
            f"CPU kernels {kernels!r} are not supported here; available: "
            f"{', '.join(cpu_variants())}, or a C or CUDA file"
        )
    return kernels


def prepare_model(config: EngineConfig) -> Prepared:
    """Resolve the model, choose the predictor and state the placement problem.

    Raises:
        CheckpointError, ConfigError, PolicyError: input that cannot be used.
        BudgetError: too little GPU memory.
    """
    kernels = prepare_kernels(config.kernels)
    bundle = resolve_model(config.model, config.dtype)
    spec = bundle.spec
    context = _context(config, spec)
    profile = ActivationProfile.load(bundle.profile_path) if bundle.profile_path else None
    name, note = config.predictor, ""
    if name == "auto":
        choice = choose_auto(bundle, profile)
        name, note = choice.kind, choice.why
    predictor, layers = _predictor(config, name, bundle, profile)
    budgets = parse_budgets(config.vram, config.gpu_executors)
    ahead = trained_lookahead(predictor, policy_name(name))
    gpu = choose_gpu(config, spec, context, budgets[0], layers, ahead, kernels)
    if gpu is None and isinstance(kernels, Variant) and kernels.on_gpu:
        raise ConfigError(
            f"{kernels.name} holds CUDA kernels and this deployment computes without a GPU; leave "
            "--kernels out, or use the native transport with HOTCOLD_CUDA=auto"
        )
    if gpu is not None:
        layers = _on_gpu(layers, name)
    int8 = gpu is not None and gpu.predictor_dtype == "int8"
    bytes_L = [predictor_bytes(spec, layer, int8) for layer in layers] or [0] * spec.n_layers
    work = ModelWork(
        spec,
        kv_bytes=2 if gpu is not None and gpu.kv_dtype == "float16" else 4,
        predict_L=tuple(predict_work(spec, layer, int8) for layer in layers),
        gates_sent=any(layer.form == "gate" for layer in layers),
        up_with_gate=gpu is not None and bool(layers),
    )
    problem = make_problem(
        spec,
        bundle.record.bytes,
        None if profile is None else profile.probabilities_LN,
        budgets if gpu is None else gpu.room,
        context,
        config.sequences,
        bytes_L,
        # Standing by means gate-first: the executors read every gate row.
        expected_density_L(predictor, profile, spec, policy_name(name))
        if layers
        else [1.0] * spec.n_layers,
        chosen_hardware(config.hardware, config.threads),
        kv_bytes=work.kv_bytes,
        embed_on_host=gpu is not None,
        topology=config.topology,
    )
    return Prepared(
        config=config,
        bundle=bundle,
        profile=profile,
        problem=problem,
        work=work,
        predicts=bool(layers),
        residual_input=any(layer.input == "residual" for layer in layers),
        with_gate=any(layer.form in WITH_GATE for layer in layers),
        remembers=any(layer.form == "window" for layer in layers),
        context=context,
        kernels=kernels,
        predictor=name,
        note=note,
        predictor_bytes_L=tuple(bytes_L) if layers else (),
        predictor_parameters=predictor_parameters(layers),
        lookahead=ahead if layers else 0,
        gpu=gpu,
    )


def with_budget(prepared: Prepared, vram: str | int) -> Prepared:
    """The same model under another memory budget; nothing of it is read again.

    Raises:
        ConfigError: not a size.
        BudgetError: less than what must be on the GPU.
    """
    gpu, problem = prepared.gpu, prepared.problem
    rooms = [size or 0 for size in parse_budgets(vram, problem.gpus)]
    if gpu is not None:
        gpu = with_vram(gpu, rooms[0])
        rooms = [gpu.room]
    budgets = {**problem.budgets, **dict(zip(problem.devices, rooms, strict=False))}
    return replace(
        prepared,
        config=replace(prepared.config, vram=vram),
        problem=replace(problem, budgets=budgets),
        gpu=gpu,
    )


def _on_gpu(layers: tuple[NativeLayer, ...], name: object) -> tuple[NativeLayer, ...]:
    """The layers a GPU executor predicts with; none where the executors go gate-first instead.

    Raises:
        ConfigError: a form the GPU has no kernels for.
    """
    if any(layer.form == "window" for layer in layers):
        # The device would have to learn, every layer, which of the host's neurons fired: one word
        # more in the exchange, on the way that the device waits for anyway.
        raise ConfigError(
            f"predictor '{policy_name(name)}' remembers which neurons fired, and a GPU is not told "
            "which of the host's did; choose exact, learned, low-rank, sign or frequency, or set "
            "HOTCOLD_CUDA=off"
        )
    if any(layer.form == "gate" for layer in layers):
        return ()  # gate rows are what the executors evaluate anyway, each those it holds
    return layers


def _context(config: EngineConfig, spec: ModelSpec) -> int:
    if config.context is None:
        return min(spec.max_context, DEFAULT_CONTEXT)
    if config.context > spec.max_context:
        raise ConfigError(
            f"context {config.context} is more than the {spec.max_context} positions this model "
            "was made for; lower --context"
        )
    return config.context


def _predictor(
    config: EngineConfig, name: Any, bundle: Bundle, profile: ActivationProfile | None
) -> tuple[Predictor, tuple[NativeLayer, ...]]:
    """The prepared predictor and its native layers; none where it stands by."""
    settings = split_settings(config.settings)["predictor"]
    predictor = choose_predictor(name, bundle, settings)
    if not predicts(predictor, policy_name(name)):
        return predictor, ()
    store = WeightStore.open(bundle)
    try:
        view = ModelView.of(bundle, store)
        return predictor, prepare_predictor(predictor, name, view, profile, compare=True)
    finally:
        store.close()
