"""What an engine reports of its actors: typed, plain, with units."""

from dataclasses import dataclass, field, fields

from hotcold.runtime.engine.audit import RecallEstimate
from hotcold.runtime.exchange.segment import ActorState


@dataclass(frozen=True)
class ActorStats:
    """One actor's work since its plan was loaded.

    Args:
        node_id: Ray node it runs on.
        pid: its process.
        gate_rows: gate rows it evaluated, one a token and neuron; rows of fc1 without gating.
        up_down_rows: neurons whose up row and down column it used; without gating, columns of fc2.
        bytes: weight and KV bytes it read.
        busy_s: seconds its steps computed.
        wait_s: seconds its steps waited for other actors within passes.
        passes: passes it took part in.
        skipped_exchanges: exchanges left out because no cold neuron was active.
        role: what it does under this plan, in words.
        audit_rows: neurons it evaluated though they were not proposed, to estimate the recall.
        audit_missed: those of them that would have fired.
        asks: where the predictor has a process of its own on the GPU, questions to it.
        asked_s: seconds from each to its answer, summed, as the GPU executor saw them.
        prompt_tokens: of the GPU executor's requests, what their prompts had.
        reused_tokens: of those, what was there already of earlier requests.
    """

    node_id: str
    pid: int
    gate_rows: int
    up_down_rows: int
    bytes: int
    busy_s: float
    wait_s: float
    passes: int
    skipped_exchanges: int
    role: str
    audit_rows: int = 0
    audit_missed: int = 0
    asks: int = 0
    asked_s: float = 0.0
    ahead_bytes: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0

    @classmethod
    def of(cls, state: ActorState, node_id: str, pid: int, role: str) -> "ActorStats":
        """From the counters in the segment."""
        counts = {field.name: getattr(state, field.name, None) for field in fields(cls)}
        times = {
            f"{name}_s": getattr(state, f"{name}_ns") / 1e9 for name in ("busy", "wait", "asked")
        }
        return cls(**{**counts, **times, "node_id": node_id, "pid": pid, "role": role})


@dataclass(frozen=True)
class EngineStats:
    """A whole engine.

    Args:
        actors: by label, "gpu", "cpu" and "predictor"; further ones "gpu1", "cpu1", ...
        gpu_executors: labels of the GPU executors; cpu_executors: of the CPU executors.
        plan_hash: which plan it runs.
        policy: who made the plan.
        schedule: name of the schedule policy.
        transport: "native" or "ray".
        bytes_by_device: what the plan puts on each device.
        processors: in words, the threads of each actor, the cores and quota that they have, and
            whether those that wait spin.
        audit_every: one in so many neurons is audited; 0: none, as where nothing is guessed.
        phase_s: seconds of a pass by phase (`hotcold.runtime.tracing.phases`), means over the
        newest 32
            passes; empty over the Ray transport.
        clock_error_s: a GPU's times are within so much of this machine's clock; 0 without one.
        owners_version: of the table of owners; each change since the launch makes another.
        neurons_moved: to other devices since the launch, without a new epoch.
    """

    actors: dict[str, ActorStats]
    plan_hash: str
    policy: str
    schedule: str
    transport: str
    bytes_by_device: dict[str, int]
    processors: str = ""
    audit_every: int = 0
    phase_s: dict[str, float] = field(default_factory=dict)
    clock_error_s: float = 0.0
    gpu_executors: tuple[str, ...] = ("gpu",)
    cpu_executors: tuple[str, ...] = ("cpu",)
    owners_version: int = 0
    neurons_moved: int = 0

    @property
    def gpu_neuron_load(self) -> float:
        """Share of the activated neurons that the GPU executor computed (paper, Figure 12)."""
        gpu, cpu = (
            sum(self.actors[actor].up_down_rows for actor in kind)
            for kind in (self.gpu_executors, self.cpu_executors)
        )
        return gpu / (gpu + cpu) if gpu + cpu else 0.0

    @property
    def _executors(self) -> list[ActorStats]:
        return [self.actors[actor] for actor in (*self.gpu_executors, *self.cpu_executors)]

    @property
    def wait_s(self) -> float:
        """Seconds the executors waited within passes, summed."""
        return sum(actor.wait_s for actor in self._executors)

    @property
    def recall(self) -> RecallEstimate | None:
        """The predictor's recall so far with its standard error; None where it is not audited."""
        if not self.audit_every:
            return None
        executors = self._executors
        return RecallEstimate(
            sum(actor.up_down_rows for actor in executors),
            sum(actor.audit_missed for actor in executors),
            self.audit_every,
        )
