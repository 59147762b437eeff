"""An Engine that computes nothing: the command line is tested without Ray and without a model.

`install` puts it where the command line looks for the real one. As a program it runs the command
line in a process of its own, for the tests of signals and pipes.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import hotcold.actors
from hotcold.native.errors import ActorLostError, BudgetError
from hotcold.runtime.engine.audit import RecallEstimate
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.text.prompts import sampling_of
from hotcold.runtime.tracing.spans import Span

STORY = ["There", " was", " a", " caf\u00e9", "."]


@dataclass(frozen=True)
class Token:
    id: int
    text: str
    logprob: float = -0.5
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class ActorStats:
    node_id: str = "n0"
    pid: int = 4242
    gate_rows: int = 1000
    up_down_rows: int = 100
    bytes: int = 5_000_000
    busy_s: float = 0.25
    wait_s: float = 0.125
    role: str = "computes"


@dataclass
class EngineStats:
    actors: dict[str, ActorStats]
    gpu_neuron_load: float
    processors: str = ""
    plan_hash: str = "abc123"
    policy: str = "greedy"
    schedule: str = "selective"
    transport: str = "native"
    recall: RecallEstimate | None = None


@dataclass
class GenerationStats:
    prompt_tokens: int = 4
    new_tokens: int = 5
    prompt_s: float = 0.01
    decode_s: float = 0.02
    prompt_tokens_per_s: float = 400.0
    decode_tokens_per_s: float = 250.0
    gb_per_s: float = 3.5
    finish: str = "length"
    reused_tokens: int = 0


@dataclass
class Completion:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    stats: GenerationStats
    tokens: Sequence[Token] = ()


@dataclass
class FakeEngine:
    """Records what was asked of it; the class attributes are what a test sets.

    Args:
        arguments: of launch.
        refuses: launch and replan refuse a policy of that name for want of memory.
        breaks: generate loses an actor under a policy of that name.
        interrupt_after: requests after which Ctrl-C is pressed.
        failure: raised by generate after its first token.
        launch_failure: raised by launch.
        token_s: time between tokens.
        marker: file written when the engine is closed.
    """

    arguments: dict[str, Any]
    plan: str = ""
    last: GenerationStats | None = field(default_factory=GenerationStats)
    closed: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    under: list[tuple[str, str, str | int | None]] = field(default_factory=list)

    refuses: ClassVar[str | None] = None
    breaks: ClassVar[str | None] = None
    interrupt_after: ClassVar[int | None] = None
    failure: ClassVar[BaseException | None] = None
    launch_failure: ClassVar[BaseException | None] = None
    gpu_neuron_load: ClassVar[float] = 0.62
    recall: ClassVar[RecallEstimate | None] = None
    token_s: ClassVar[float] = 0.0
    marker: ClassVar[Path | None] = None

    @classmethod
    def launch(cls, **arguments: Any) -> "FakeEngine":
        if cls.launch_failure is not None:
            raise cls.launch_failure
        if cls.refuses is not None and cls.refuses in str(arguments.get("policy")):
            raise BudgetError("the plan needs 9 MiB, the budget leaves 1 MiB; raise --vram")
        engine = cls(arguments)
        engine.plan = f"plan of {arguments.get('policy', 'greedy')}"
        LAUNCHED.append(engine)
        return engine

    def replan(
        self, policy: object, schedule: object = None, vram: str | int | None = None
    ) -> None:
        if self.refuses is not None and self.refuses in str(policy):
            raise BudgetError("the plan needs 9 MiB, the budget leaves 1 MiB; raise --vram")
        self.plan = f"plan of {policy}"
        self.under.append((str(policy), str(schedule), vram))

    def spans(self) -> dict[str, list[Span]]:
        """Three passes of the least program: 100 us each, the CPU executor awaited in them."""
        return {
            "gpu": [
                span
                for seq in (1, 2, 3)
                for span in (
                    Span(
                        "gpu", "attention", 0, seq, *(seq * 100_000 + ns for ns in (0, 0, 40_000))
                    ),
                    Span(
                        "gpu",
                        "merge",
                        0,
                        seq,
                        *(seq * 100_000 + ns for ns in (40_000, 90_000, 99_000)),
                    ),  # fmt: skip
                )
            ],
            "cpu": [
                Span(
                    "cpu", "cold", 0, seq, *(seq * 100_000 + ns for ns in (-5_000, 41_000, 80_000))
                )
                for seq in (1, 2, 3)
            ],
        }

    @property
    def programs(self) -> dict[str, Any]:
        return {}

    @property
    def recoveries(self) -> list[Any]:
        return []

    def generate(
        self, prompt: str | Sequence[int], sampling: Sampling | None = None, **fields: Any
    ) -> Iterator[Token]:
        asked = fields if sampling is None else asdict(sampling)
        self.requests.append({"prompt": prompt, "plan": self.plan, **asked})
        if self.breaks is not None and self.breaks in self.plan:
            raise ActorLostError("gpu", "the gpu actor was lost")
        if self.interrupt_after is not None and len(self.requests) > self.interrupt_after:
            raise KeyboardInterrupt
        for index, text in enumerate(STORY):
            yield Token(100 + index + (self.plan == "plan of odd"), text)
            if self.failure is not None:
                raise self.failure
            time.sleep(self.token_s)

    @property
    def sequences(self) -> int:
        return 2

    def generate_many(
        self, prompts: Iterable[Any], sampling: Sampling | None = None
    ) -> Iterator[Completion]:
        """The last one finishes first."""
        for index, given in reversed(list(enumerate(prompts))):
            fields = {**given} if isinstance(given, dict) else {"prompt": given}
            tokens = list(
                self.generate(fields.pop("prompt"), sampling_of(fields, sampling or Sampling()))
            )
            text, ids = "".join(token.text for token in tokens), [token.id for token in tokens]
            yield Completion(index, text, ids, "length", GenerationStats())

    def stats(self) -> EngineStats:
        actors = {name: ActorStats() for name in ("gpu", "cpu", "predictor")}
        actors["gpu"].wait_s += 0.25 * len(self.requests)
        actors["gpu"].busy_s += 0.75 * len(self.requests)
        return EngineStats(actors, self.gpu_neuron_load, recall=self.recall)

    def close(self) -> None:
        self.closed += 1
        if self.marker is not None:
            self.marker.write_text("closed")


LAUNCHED: list[FakeEngine] = []


def module() -> ModuleType:
    """A stand-in for hotcold.actors, whose folders are the real ones."""
    stand_in = ModuleType("hotcold.actors")
    stand_in.__path__ = hotcold.actors.__path__
    stand_in.Engine = FakeEngine  # type: ignore[attr-defined]
    return stand_in


if __name__ == "__main__":
    from hotcold.actors.cli.main import main

    sys.modules["hotcold.actors"] = module()
    FakeEngine.marker = Path(sys.argv[1])
    FakeEngine.token_s = 0.2
    sys.exit(main(sys.argv[2:]))
