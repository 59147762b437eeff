"""Deployment: everything the three actors need to run a model, as plain data.

`prepare` is the offline half of launching an engine: resolve the model to a bundle, choose the
predictor, place the neurons, build the DAG, schedule it, compile the programs. The result travels
to the actors; they open the bundle themselves (weights are never sent).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.runtime.config import DEFAULT_CONTEXT, EngineConfig
from hotcold.runtime.cores import CoreShare, share_cores
from hotcold.runtime.dag import Dag, build_dag
from hotcold.runtime.errors import ConfigError
from hotcold.runtime.exchange import SegmentLayout
from hotcold.runtime.fetch import computed_plan, fetched, idle_nodes
from hotcold.runtime.formats.bundle import Bundle, resolve_model
from hotcold.runtime.gpu import GpuChoice, choose_gpu, int8_bytes, with_vram
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.plan import Plan, make_plan
from hotcold.runtime.predictor import (
    ModelView,
    NativeLayer,
    Predictor,
    check_lookahead,
    choose_predictor,
    expected_density_L,
    native_layers,
    predictor_bytes_L,
    predictor_parameters,
    predicts,
)
from hotcold.runtime.predictor_choice import choose_auto
from hotcold.runtime.problem import Problem, make_problem
from hotcold.runtime.profile import ActivationProfile
from hotcold.runtime.program import Program, compile_programs
from hotcold.runtime.schedule import Schedule, fetching
from hotcold.runtime.this_machine import chosen_hardware
from hotcold.runtime.units import parse_bytes
from hotcold.runtime.variant import Variant, prepare_kernels
from hotcold.runtime.weights import WeightStore, choose_store

WITH_GATE = ("gate", "window")  # forms that send gate pre-activations along


@dataclass(frozen=True)
class Deployment:
    """What to run and where.

    Args:
        bundle_path: folder of the bundle, the same for all actors.
        spec: the model's shapes.
        plan: who owns which neuron.
        programs: steps by actor.
        layout: the exchange segment.
        context: positions of the KV cache.
        predictor: what to choose_predictor() with, on the predictor's own machine.
        predictor_settings: its parameters.
        predicts: False where the predictor stands by (gate-first).
        profile: activation counts, or None.
        cores: threads and cores by actor.
        transport: "native" or "ray".
        schedule: name of the schedule policy.
        store: how weights are held in memory, a kind of `hotcold.runtime.weights`.
        kernels: what every actor computes with: a tested file, a built-in variant, or None (best).
        audit_every: one in so many neurons is audited for recall; 0: none.
        audit_seed: seed of that choice.
        predictor_note: why this predictor, in words.
        gpu: how the GPU executor uses a GPU; None: it computes on its CPU device.
        config: what was asked for, from which other drivers prepare other plans; without objects.
        remembers: what the predictor proposes depends on tokens before, which die with its process.
        fetch_L: by layer, the share of its cold neurons that the GPU executor computes (fetch.py).
    """

    bundle_path: Path
    spec: ModelSpec
    plan: Plan
    programs: dict[str, Program]
    layout: SegmentLayout
    context: int
    predictor: Any
    predictor_settings: Mapping[str, Any]
    predicts: bool
    profile: ActivationProfile | None
    cores: dict[str, CoreShare]
    transport: str
    schedule: str
    store: str = "file"
    kernels: Variant | str | None = None
    audit_every: int = 0
    audit_seed: int = 0
    predictor_note: str = ""
    gpu: GpuChoice | None = None
    remembers: bool = False
    fetch_L: tuple[float, ...] = ()
    config: EngineConfig | None = None

    @property
    def computed_plan(self) -> Plan:
        """The plan as the executors compute it: what the schedule fetches is the GPU executor's."""
        return computed_plan(self.plan, self.fetch_L)

    @property
    def roles(self) -> dict[str, str]:
        """What each actor does under this plan, in words."""
        hot = int(np.count_nonzero(self.plan.device_LN == 0))
        total = self.plan.device_LN.size
        over_bus = int(np.count_nonzero(fetched(self.plan.device_LN, self.fetch_L)))
        fetches = f", {over_bus} fetched over the bus" if over_bus else ""
        kernels = self.kernels.name if isinstance(self.kernels, Variant) else self.kernels
        by = f", kernels {kernels}" if kernels else ""
        on_gpu = isinstance(self.kernels, Variant) and self.kernels.on_gpu
        return {
            "gpu": f"attention, head, {hot} of {total} neurons{fetches}{by}",
            "cpu": f"{total - hot - over_bus} of {total} neurons{'' if on_gpu else by}",
            "predictor": self._predictor_role(),
        }

    def _predictor_role(self) -> str:
        if not self.predicts:
            return "stands by: the executors evaluate the gate of every neuron they own"
        why = f"; chosen by auto: {self.predictor_note}" if self.predictor_note else ""
        if self.gpu is not None:
            return f"owns the predictors ({self.predictor}); the GPU runs them in its graph{why}"
        every = self.layout.with_gate and not self.remembers
        what = "evaluates every gate" if every else "predicts every layer"
        return f"{what} ({self.predictor}){why}"


@dataclass(frozen=True)
class Prepared:
    """A model and its predictor, resolved once; plans are made from it."""

    config: EngineConfig
    bundle: Bundle
    profile: ActivationProfile | None
    problem: Problem
    predicts: bool
    residual_input: bool
    with_gate: bool
    context: int
    all_gates: bool = False
    remembers: bool = False
    kernels: Variant | str | None = None
    predictor: Any = "exact"
    note: str = ""
    predictor_bytes_L: tuple[int, ...] = ()
    predictor_parameters: int = 0
    lookahead: int = 0
    gpu: GpuChoice | None = None


def prepare_model(config: EngineConfig) -> Prepared:
    """Resolve the model, choose the predictor and state the placement problem.

    Raises:
        CheckpointError, ConfigError, PolicyError: input that cannot be used.
        BudgetError: too little GPU memory.
    """
    kernels = prepare_kernels(config.kernels)
    bundle = resolve_model(None if config.model is None else Path(config.model), config.dtype)
    spec = bundle.spec
    context = _context(config, spec)
    profile = ActivationProfile.load(bundle.profile_path) if bundle.profile_path else None
    name, note = config.predictor, ""
    if name == "auto":
        choice = choose_auto(bundle, profile)
        name, note = choice.kind, choice.why
    predictor, layers = _predictor(config, name, bundle, profile)
    vram = None if config.vram is None else parse_bytes(config.vram)
    ahead = int(getattr(predictor, "lookahead", 0))
    gpu = choose_gpu(config, spec, context, vram, layers, ahead)
    if gpu is None and isinstance(kernels, Variant) and kernels.on_gpu:
        raise ConfigError(
            f"{kernels.name} holds CUDA kernels and this deployment computes without a GPU; leave "
            "--kernels out, or use the native transport with HOTCOLD_CUDA=auto"
        )
    if gpu is not None:
        layers = _on_gpu(layers, name)
    bytes_L = predictor_bytes_L(layers) if layers else (0,) * spec.n_layers
    if gpu is not None and gpu.predictor_dtype == "int8":
        bytes_L = tuple(int8_bytes(layer, spec) for layer in layers) or bytes_L
    problem = make_problem(
        spec,
        bundle.record.record_bytes,
        None if profile is None else profile.probabilities_LN,
        vram if gpu is None else gpu.room,
        context,
        1,
        bytes_L,
        # Standing by means gate-first: the executors read every gate row.
        expected_density_L(predictor, profile, spec) if layers else [1.0] * spec.n_layers,
        chosen_hardware(config.hardware),
        kv_bytes=2 if gpu is not None and gpu.kv_dtype == "float16" else 4,
        embed_on_host=gpu is not None,
    )
    return Prepared(
        config=config,
        bundle=bundle,
        profile=profile,
        problem=problem,
        predicts=bool(layers),
        residual_input=any(layer.input == "residual" for layer in layers),
        with_gate=any(layer.form in WITH_GATE for layer in layers),
        all_gates=any(layer.form == "gate" for layer in layers),
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
    size = parse_bytes(vram)
    gpu, problem = prepared.gpu, prepared.problem
    if gpu is not None:
        gpu = with_vram(gpu, size)
    budgets = {**problem.budgets, problem.devices[0]: size if gpu is None else gpu.room}
    return replace(
        prepared,
        config=replace(prepared.config, vram=vram),
        problem=replace(problem, budgets=budgets),
        gpu=gpu,
    )


def _check_on_gpu(dag: Dag, schedule: Schedule, name: str) -> None:
    """Refuse an order that the GPU's graph does not keep, rather than run another one.

    Raises:
        ConfigError: a step of the GPU executor that waits for a cold sum before its merge.
    """
    for source, target in schedule.after:
        apart = schedule.lane.get(source) != schedule.lane.get(target) == schedule.merge_on
        if apart and dag.node[source].kind == "cold":
            raise ConfigError(
                f"schedule '{name}' lets {target} wait for {source}; a GPU waits for the CPU "
                "executor at merges only; choose another schedule, a placement without layers on "
                "both sides (ffn-split), or set HOTCOLD_CUDA=off"
            )


def _on_gpu(layers: tuple[NativeLayer, ...], name: object) -> tuple[NativeLayer, ...]:
    """The layers a GPU executor predicts with; none where the executors go gate-first instead.

    Raises:
        ConfigError: a form the GPU has no kernels for.
    """
    from hotcold.policies.run import policy_name

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
    from hotcold.policies.settings import split_settings

    settings = split_settings(config.settings)["predictor"]
    predictor = choose_predictor(name, bundle, settings)
    if not predicts(predictor):
        return predictor, ()
    store = WeightStore.open(bundle)
    try:
        predictor.prepare(ModelView.of(bundle, store), profile)
        return predictor, native_layers(predictor, bundle.spec)
    finally:
        store.close()


def solve(prepared: Prepared, policy: Any = None, timeout_s: float = 60.0) -> Plan:
    """Make the plan: loaded where the config names one, else placed by the policy.

    A policy given by name or file runs in a child process, an object in this one.

    Raises:
        PolicyError: the policy cannot be found, raised, or returned an illegal placement.
    """
    from hotcold.policies.run import place, policy_name
    from hotcold.policies.settings import split_settings

    config, bundle = prepared.config, prepared.bundle
    if policy is None and config.plan is not None:
        return load_plan(prepared, config.plan)
    policy = config.policy if policy is None else policy
    settings = split_settings(config.settings)["placement"] if isinstance(policy, str) else {}
    placement = place(policy, prepared.problem, settings, timeout_s)
    return make_plan(prepared.problem, placement, policy_name(policy), bundle.checksum)


def load_plan(prepared: Prepared, folder: Any) -> Plan:
    """A saved plan, if it goes with this model and its budgets.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: made for another model, or for a larger budget.
    """
    plan, bundle = Plan.load(Path(folder)), prepared.bundle
    if plan.model != bundle.checksum or plan.device_LN.shape != prepared.problem.shape:
        raise ConfigError(
            f"plan {folder} was made for another model ({plan.model[:12]}, this one is "
            f"{bundle.checksum[:12]}); solve again"
        )
    for device, used in plan.bytes_by_device.items():
        budget = prepared.problem.budgets.get(device)
        if budget is not None and used > budget:
            raise ConfigError(
                f"plan {folder} puts {used:,} bytes on {device}, {used - budget:,} over its budget "
                f"of {budget:,}; solve again for this budget"
            )
    return plan


def _without_objects(config: EngineConfig) -> EngineConfig:
    """What others can be told; policies given as objects stay with the driver that has them."""
    policy = config.policy if isinstance(config.policy, str) else "greedy"
    schedule = config.schedule if isinstance(config.schedule, str) else "selective"
    return replace(config, policy=policy, schedule=schedule, plan=None)


def deploy(prepared: Prepared, plan: Plan, schedule: Any = None) -> Deployment:
    """Build the DAG, schedule it and compile the programs.

    Raises:
        PolicyError: no such schedule, or an illegal one.
        ConfigError: one that does not go with the predictor.
    """
    from hotcold.policies.run import make_schedule, policy_name
    from hotcold.policies.settings import split_settings

    config, spec = prepared.config, prepared.bundle.spec
    schedule = config.schedule if schedule is None else schedule
    dag = build_dag(spec, plan, prepared.predicts)
    settings = split_settings(config.settings)
    own = settings["schedule"] if isinstance(schedule, str) else {}
    result = make_schedule(schedule, dag, plan, prepared.problem.hardware, own)
    if prepared.gpu is not None and config.bus_share and not any(result.fetch):
        result = fetching(dag, result, (config.bus_share,) * spec.n_layers)
    if prepared.gpu is not None:
        _check_on_gpu(dag, result, policy_name(schedule))
    check_lookahead(prepared.lookahead, result.lookahead, policy_name(schedule))
    if prepared.with_gate and any(result.lookahead):
        raise ConfigError(
            f"schedule '{policy_name(schedule)}' predicts layers early, but predictor "
            f"'{policy_name(prepared.predictor)}' evaluates gates, for which it needs the layer's "
            "own input; choose another schedule, or a predictor that estimates: learned, low-rank, "
            "sign"
        )
    layout = SegmentLayout.build(
        spec.n_layers,
        spec.d_model,
        spec.n_neurons,
        config.max_batch,
        with_gate=prepared.with_gate,
        with_residual=prepared.residual_input,
    )
    return Deployment(
        bundle_path=prepared.bundle.path,
        spec=spec,
        plan=plan,
        programs=compile_programs(dag, result, layout, idle_nodes(plan, result.fetch)),
        layout=layout,
        context=prepared.context,
        predictor=prepared.predictor,
        predictor_settings=settings["predictor"],
        predicts=prepared.predicts,
        profile=prepared.profile,
        cores=share_cores(config.threads, config.pin, gpu=prepared.gpu is not None),
        transport=config.transport,
        schedule=policy_name(schedule),
        store=choose_store(config.store, prepared.bundle.weights_bytes),
        kernels=prepared.kernels,
        audit_every=config.audit if prepared.predicts and not prepared.all_gates else 0,
        remembers=prepared.remembers,
        audit_seed=config.seed,
        predictor_note=prepared.note,
        config=_without_objects(config),
        gpu=prepared.gpu,
        fetch_L=tuple(float(share) for share in result.fetch),
    )
