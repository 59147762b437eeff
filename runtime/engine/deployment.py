"""Deployment: everything the actors need to run a model, as plain data.

Made of what prepare.py found: place the neurons, build the DAG, schedule it, compile the programs.
The result travels to the actors; they open the bundle themselves (weights are never sent).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotcold.native.abi.generated import MAX_BATCH, StepFlag
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.gpu import GpuChoice, with_formats
from hotcold.runtime.engine.prepare import Prepared
from hotcold.runtime.engine.variant import Variant
from hotcold.runtime.exchange.segment import SegmentLayout
from hotcold.runtime.exchange.transports import SHARES_MEMORY
from hotcold.runtime.hardware.cores import Cores, divide_cores, may_spin
from hotcold.runtime.limits import processors
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.dag import build_dag
from hotcold.runtime.plan.fetch import computed_plan, idle_nodes
from hotcold.runtime.plan.gpu_order import unkept
from hotcold.runtime.plan.plan import Plan, make_plan
from hotcold.runtime.plan.program import Program, compile_programs
from hotcold.runtime.plan.schedule import fetching
from hotcold.runtime.predictors.predictor import check_lookahead
from hotcold.runtime.profiles.profile import ActivationProfile
from hotcold.runtime.topology import Topology
from hotcold.runtime.weights.weights import choose_store


@dataclass(frozen=True)
class Deployment:
    """What to run and where.

    Args:
        bundle_path: folder of the bundle, the same for all actors.
        programs: steps by actor.
        context: positions of the KV cache, of each sequence.
        sequences: how many are decoded at once, at most.
        predictor: what to choose_predictor() with, on the predictor's own machine.
        predicts: False where the predictor stands by (gate-first).
        cores: threads and cores by actor.
        spins: whether a thread that waits spins first; else it sleeps at once.
        processors: in words, what affinity and a CPU quota allow.
        transport: "native" or "ray".
        schedule: name of the schedule policy.
        store: how weights are held in memory, a kind of `hotcold.runtime.weights.weights`.
        kernels: what every actor computes with: a tested file, a built-in variant, or None (best).
        audit_every: one in so many neurons is audited for recall; 0: none.
        audit_seed: seed of that choice.
        predictor_note: why this predictor, in words.
        gpu: how the GPU executor uses a GPU; None: it computes on its CPU device.
        config: what was asked for, from which other drivers prepare other plans; without objects.
        remembers: what the predictor proposes depends on tokens before, which die with its process.
        prefix_cache: whether prompts begin with what others have computed of the same tokens.
        prompt_piece: most prompt tokens of a pass in which others decode.
        version, moved: of the table of owners and neurons moved, when the epoch began.
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
    cores: dict[str, Cores]
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
    spins: bool = True
    processors: str = ""
    sequences: int = 1
    prefix_cache: bool = True
    prompt_piece: int = MAX_BATCH
    version: int = 0
    moved: int = 0

    @property
    def topology(self) -> Topology:
        """Its actors, their roles and devices."""
        return self.layout.topology

    @property
    def computed_plan(self) -> Plan:
        """The plan as the executors compute it: what the schedule fetches is the GPU executor's."""
        return computed_plan(self.plan, self.fetch_L)

    @property
    def threads_text(self) -> str:
        """What the actors compute with: threads, cores, quota."""
        counts = "/".join(str(share.threads) for share in self.cores.values())
        waiting = "spin" if self.spins else "sleep"
        return f"{counts} threads on {self.processors}; those that wait {waiting}"

    @property
    def shares_memory(self) -> bool:
        """Whether the executors share the exchange's memory."""
        return SHARES_MEMORY[self.transport]

    @property
    def reads_ahead(self) -> bool:
        """Whether cold neurons of some layer are read before its input is there."""
        return any((steps["flags"] & StepFlag.AHEAD).any() for steps in self.programs.values())


def solve(prepared: Prepared, policy: Any = None) -> Plan:
    """Make the plan: loaded where the config names one, else placed by the policy.

    A policy given by name or file runs in a child process, an object in this one.

    Raises:
        PolicyError: the policy cannot be found, raised, or returned an illegal placement.
    """
    from hotcold.runtime.plugins.run import place, policy_name
    from hotcold.runtime.plugins.settings import split_settings

    config, bundle = prepared.config, prepared.bundle
    if policy is None and config.plan is not None:
        return load_plan(prepared, config.plan)
    policy = config.policy if policy is None else policy
    settings = split_settings(config.settings)["placement"] if isinstance(policy, str) else {}
    placement = place(policy, prepared.problem, settings, config.policy_timeout)
    return make_plan(prepared.problem, placement, policy_name(policy), bundle.checksum)


def load_plan(prepared: Prepared, folder: Any) -> Plan:
    """A saved plan, if it goes with this model and its budgets.

    Raises:
        CheckpointError: it cannot be read.
        ConfigError: made for another model, for fewer sequences, or for a larger budget.
    """
    plan, bundle = Plan.load(Path(folder)), prepared.bundle
    if plan.model != bundle.checksum or plan.device_LN.shape != prepared.problem.shape:
        raise ConfigError(
            f"plan {folder} was made for another model ({plan.model[:12]}, this one is "
            f"{bundle.checksum[:12]}); solve again"
        )
    if plan.devices != (there := prepared.problem.devices):
        counts = plan.topology
        raise ConfigError(
            f"plan {folder} is for {', '.join(plan.devices)}, this engine has {', '.join(there)}; "
            f"solve again, or choose gpu_executors {counts.gpus} and cpu_executors {counts.cpus}"
        )
    sizes = {name: other.bytes for name, other in prepared.problem.formats.items()}
    if unknown := set(plan.format_bytes.items()) - set(sizes.items()):
        name, size = min(unknown)
        raise ConfigError(
            f"plan {folder} stores neurons in {name}, {size} bytes each; this model's may be in "
            f"{', '.join([prepared.problem.dtype, *sizes])}; solve again"
        )
    if plan.batch < prepared.config.sequences:
        raise ConfigError(
            f"plan {folder} has a KV cache of {plan.batch} sequences, fewer than the "
            f"{prepared.config.sequences} asked for; solve again with --sequences"
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
        ConfigError: one that does not go with the predictor, or that a GPU cannot keep.
    """
    from hotcold.runtime.plugins.run import make_schedule, policy_name
    from hotcold.runtime.plugins.settings import split_settings

    config, spec = prepared.config, prepared.bundle.spec
    schedule = config.schedule if schedule is None else schedule
    dag = build_dag(spec, plan, prepared.predicts, prepared.work)
    settings = split_settings(config.settings)
    own = settings["schedule"] if isinstance(schedule, str) else {}
    hardware, timeout_s = prepared.problem.hardware, config.policy_timeout
    result = make_schedule(schedule, dag, plan, hardware, own, timeout_s)
    if prepared.gpu is not None and config.bus_share and not any(result.fetch):
        result = fetching(dag, result, (config.bus_share,) * spec.n_layers)
    computed = computed_plan(plan, result.fetch)
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
        topology=config.topology,
    )
    programs = compile_programs(dag, result, layout, idle_nodes(plan, result.fetch))
    gpu = None if prepared.gpu is None else with_formats(prepared.gpu, plan, computed)
    if gpu is not None and (fault := unkept(dag, result, programs, gpu.remote_predictor)):
        raise ConfigError(
            f"schedule '{policy_name(schedule)}' {fault}; choose another schedule or placement, or "
            "set HOTCOLD_CUDA=off"
        )
    here = processors()
    topology = layout.topology
    own_threads = {topology.owner(lane).actor: count for lane, count in result.threads.items()}
    cores = divide_cores(config.threads, config.pin, here, gpu is not None, own_threads, topology)
    return Deployment(
        bundle_path=prepared.bundle.path,
        spec=spec,
        plan=plan,
        programs=programs,
        layout=layout,
        context=prepared.context,
        sequences=config.sequences,
        prefix_cache=config.prefix_cache,
        prompt_piece=config.prompt_piece,
        predictor=prepared.predictor,
        predictor_settings=settings["predictor"],
        predicts=prepared.predicts,
        profile=prepared.profile,
        cores=cores,
        spins=may_spin(cores, here),
        processors=str(here),
        transport=config.transport,
        schedule=policy_name(schedule),
        store=choose_store(config.store, prepared.bundle.weights_bytes),
        kernels=prepared.kernels,
        audit_every=config.audit if prepared.predicts and not prepared.work.gates_sent else 0,
        remembers=prepared.remembers,
        audit_seed=config.seed,
        predictor_note=prepared.note,
        config=_without_objects(config),
        gpu=gpu,
        fetch_L=tuple(float(share) for share in result.fetch),
    )
