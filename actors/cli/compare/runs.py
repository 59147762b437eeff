"""How `hotcold compare` runs its cases on one engine, and the figures it keeps.

Every placement is solved before (solving.py). Every round has one turn of each case, in an order
drawn from the seed and with a warm-up before each turn. So a machine that warms up or gets busy
does not favour one case, and a command that is ended early has all cases with fewer turns of each.
"""

import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.running import figures
from hotcold.actors.cli.compare.cases import Case
from hotcold.actors.cli.compare.solving import Ready
from hotcold.native.errors import BackendError, BudgetError, HotcoldError

if TYPE_CHECKING:
    from hotcold.actors import Engine
    from hotcold.runtime.tracing.spans import Span

WARM_UP_TOKENS = 8
FOR_WANT = (BudgetError, BackendError)  # of memory, of a device: no failure, the others may fit
Spans = Mapping[str, "Sequence[Span]"]


@dataclass(frozen=True)
class Manner:
    """How the runs are made.

    Args:
        prompt, max_tokens: of every run.
        repeat: times that a case's turn comes.
        each: measured runs a turn.
        seed: of the order of turns.
        spans: whether the last run's spans are kept.
        until: time.monotonic() from which no turn begins; None: no such time.
    """

    prompt: str
    max_tokens: int
    repeat: int = 3
    each: int = 1
    seed: int = 0
    spans: bool = False
    until: float | None = None


@dataclass
class Measured:
    """What the runs of one case gave; one entry a run.

    Args:
        refused: why it cannot run on this machine, "" if it can.
        spans: of its last run, by actor.
    """

    tokens_per_s: list[float] = field(default_factory=list)
    gpu_neuron_load: list[float] = field(default_factory=list)
    waits_s: dict[str, list[float]] = field(default_factory=lambda: {"gpu": [], "cpu": []})
    wait_share: list[float] = field(default_factory=list)
    token_ids: list[list[int]] = field(default_factory=list)
    replan_s: list[float] = field(default_factory=list)
    refused: str = ""
    spans: "Spans" = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A case after its runs: the entry for tables, and what it is made of."""

    run: dict[str, Any]
    ready: Ready
    measured: Measured


def measure_all(
    engine: "Engine",
    ready: Sequence[Ready],
    manner: Manner,
    measured: Mapping[Case, Measured],
    loaded: Ready | None,
    what: str = "comparing",
) -> None:
    """Generate with every case, in rounds, each in an order drawn from the seed.

    The model is loaded once, with the case `loaded`. A turn that fails is told and left out; the
    others go on. `measured` is filled as runs end, so that an interruption leaves what there is.

    Raises:
        HotcoldError: the first failure of a turn but FOR_WANT, after all other turns.
    """
    order = turns(ready, manner)
    progress = output.Progress(what, "turn")
    failed: HotcoldError | None = None
    last = ""  # for whoever kills the command, and for the impatient
    for done, one in enumerate(order):
        progress(done, done / len(order), last)
        if manner.until is not None and time.monotonic() >= manner.until:
            output.note(f"hotcold: time is up after {done} of {len(order)} turns")
            break
        record = measured[one.case]
        if record.refused:
            continue
        try:
            if loaded is None or not _same(one, loaded):
                loaded = None  # if it fails, nobody knows
                _replan(engine, one, record)
                loaded = one
            _take_turn(engine, manner, record)
            last = f"; {one.case.described}: {record.tokens_per_s[-1]:.1f} tokens/s"
        except HotcoldError as error:
            loaded = None
            refuse(record, one, error)
            if not isinstance(error, FOR_WANT):
                failed = failed or error
    progress.close()
    if failed is not None:
        raise failed


def refuse(record: Measured, one: Ready, error: HotcoldError) -> None:
    """Leave a case out from here on, and say so."""
    record.refused = str(error)
    output.note(f"hotcold: {one.case.described} is left out: {error}")


def turns(ready: Sequence[Ready], manner: Manner) -> list[Ready]:
    """Whose turn comes when."""
    draw, order = random.Random(manner.seed), []
    for _ in range(manner.repeat):
        order += draw.sample(ready, len(ready))
    return order


def _same(one: Ready, other: Ready) -> bool:
    """Whether what runs is the same, so that nothing has to be loaded."""
    parts = [(each.plan.hash, each.case.schedule, each.case.vram) for each in (one, other)]
    return parts[0] == parts[1]


def _replan(engine: "Engine", one: Ready, record: Measured) -> None:
    begin = time.monotonic()
    budget: dict[str, Any] = {} if one.case.vram is None else {"vram": one.case.vram}
    engine.replan(policy=one.placement, schedule=one.schedule, **budget)
    record.replan_s.append(time.monotonic() - begin)


def _take_turn(engine: "Engine", manner: Manner, record: Measured) -> None:
    _run_once(engine, manner.prompt, WARM_UP_TOKENS)
    for _ in range(manner.each):
        before = engine.stats().actors
        ids = _run_once(engine, manner.prompt, manner.max_tokens)
        stats = engine.stats()
        for name, waits_s in record.waits_s.items():
            waits_s.append(stats.actors[name].wait_s - before[name].wait_s)
        wait_s = record.waits_s["gpu"][-1]
        whole_s = wait_s + stats.actors["gpu"].busy_s - before["gpu"].busy_s
        record.tokens_per_s.append(figures(engine).decode_tokens_per_s)
        record.gpu_neuron_load.append(stats.gpu_neuron_load)
        record.wait_share.append(wait_s / whole_s if whole_s > 0 else 0.0)
        record.token_ids.append(ids)
    if manner.spans:
        record.spans = engine.spans()


def _run_once(engine: "Engine", prompt: str, max_tokens: int) -> list[int]:
    """Ids of a greedy continuation; past the end of text, so that every run is as long."""
    tokens = engine.generate(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return [token.id for token in tokens]


def summarise(
    model: str, ready: Sequence[Ready], measured: Sequence[Measured]
) -> list[dict[str, Any]]:
    """One entry a case: medians over its runs, the cost model's figures, equality of tokens.

    A case that did not run has None where a measurement would stand; one that could not says why
    in `refused`.
    """
    ran = [record for record in measured if record.token_ids]
    reference = ran[0].token_ids[0] if ran else []
    return [
        _entry(model, one, record, reference) for one, record in zip(ready, measured, strict=True)
    ]


def _entry(model: str, one: Ready, record: Measured, reference: list[int]) -> dict[str, Any]:
    def middle(values: Sequence[float]) -> float | None:
        return statistics.median(values) if values else None

    case, speeds = one.case, record.tokens_per_s
    waits = {f"wait_{name}_s": middle(values) for name, values in record.waits_s.items()}
    return {
        "model": model,
        "vram": case.vram,
        "step": case.step,
        "policy": case.policy,
        "schedule": case.schedule,
        "decode_tokens_per_s": middle(speeds),
        "decode_tokens_per_s_min": min(speeds, default=None),
        "decode_tokens_per_s_max": max(speeds, default=None),
        "predicted_tokens_per_s": one.predicted.tokens_per_s,
        "predicted_for": one.hardware.name,
        "on_gpu": one.on_gpu,
        "gpu_neuron_load": middle(record.gpu_neuron_load),
        "predicted_gpu_neuron_load": one.load,
        "wait_s": waits["wait_gpu_s"],
        **waits,
        "wait_share": middle(record.wait_share),
        "same_tokens": all(ids == reference for ids in record.token_ids) if speeds else None,
        "repeat": len(speeds),
        "replan_s": middle(record.replan_s),
        "refused": record.refused,
        "note": one.plan.note,
    }


def add_speedups(runs: list[dict[str, Any]]) -> None:
    """In an ablation: speed relative to its first step of the same model and budget, in place.

    Measured speeds where there is a GPU; else the cost model's, since both executors share a CPU.
    """
    base: dict[Any, float] = {}
    for run in runs:
        key = "decode_tokens_per_s" if run["on_gpu"] else "predicted_tokens_per_s"
        if run["step"] and run[key]:
            first = base.setdefault((run["model"], run["vram"]), run[key])
            run["speedup"] = run[key] / first
