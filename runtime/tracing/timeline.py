"""The timeline of tokens: the actors' spans combined into passes, sums and a Perfetto file.

Spans of all actors are on one clock (CLOCK_MONOTONIC), so one can see what an actor does while
another waits. A pass is one run of every actor's program: a block of the prompt, or one token.
Called by `hotcold trace` and `hotcold compare`; the drawing is in
runtime/offline/pictures/timeline.py.

The file is Chrome's trace event format (JSON), which ui.perfetto.dev, chrome://tracing and
Perfetto's trace_processor open: one process per actor with its loop as a thread, slices nested as
pass > step > wait, and a flow from the step that sets a flag to each step that waited for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hotcold.native.abi.names import OPS
from hotcold.runtime.plan.program import Program
from hotcold.runtime.topology import CLASSIC
from hotcold.runtime.tracing.spans import Span

Spans = Mapping[str, Sequence[Span]]
Step = tuple[str, int, str]  # operation, layer, and the actor where several have such a step
CLOCKS_NS = 2000  # how far a device's clock, matched to the host's, may be off
LEADER = CLASSIC.leader.actor
LABELS = {"gpu": "GPU executor", "cpu": "CPU executor"}


@dataclass(frozen=True)
class Pass:
    """One pass of all actors.

    Waits from before it are cut off. It begins with the GPU executor's first step and ends with the
    last of any actor.
    """

    seq: int
    spans: dict[str, list[Span]]
    begin_ns: int
    end_ns: int

    @property
    def total_ns(self) -> int:
        """From the first step to the last."""
        return self.end_ns - self.begin_ns


def passes(spans: Spans, since_ns: int = 0) -> list[Pass]:
    """The complete passes among the spans, oldest first.

    A ring forgets its oldest spans, so the first pass it holds may be cut: a pass with fewer steps
    of an actor than most have is left out.
    Passes that ended before `since_ns` are left out.
    """
    grouped: dict[int, dict[str, list[Span]]] = {}
    for actor, own in spans.items():
        for span in own:
            grouped.setdefault(span.seq, {}).setdefault(actor, []).append(span)
    usual = {
        actor: _usual([len(found.get(actor, ())) for found in grouped.values()]) for actor in spans
    }
    made = []
    for seq in sorted(grouped):
        found = grouped[seq]
        whole = all(len(found.get(actor, ())) >= count for actor, count in usual.items())
        if whole and found.get(LEADER):
            made.append(_make_pass(seq, found))
    return [one for one in made if one.end_ns >= since_ns]


def _usual(counts: Sequence[int]) -> int:
    return max(set(counts), key=lambda count: (counts.count(count), count), default=0)


def _make_pass(seq: int, found: Mapping[str, Sequence[Span]]) -> Pass:
    ordered = {
        actor: sorted(own, key=lambda s: (s.end_ns, s.begin_ns)) for actor, own in found.items()
    }
    begin = min(span.ready_ns for span in ordered[LEADER])
    cut: dict[str, list[Span]] = {}
    for actor, own in ordered.items():
        last, cut[actor] = begin, []
        for span in own:
            # Spans of one thread follow each other; the clock of a device is matched to the
            # host's, and may be off by less than a microsecond.
            start = min(max(span.begin_ns, last), span.end_ns)
            ready = min(max(span.ready_ns, start), span.end_ns)
            cut[actor].append(replace(span, begin_ns=start, ready_ns=ready))
            last = span.end_ns
    end = max(span.end_ns for own in cut.values() for span in own)
    return Pass(seq, cut, begin, end)


def typical(found: Sequence[Pass]) -> Pass | None:
    """The pass of median length; None of none."""
    if not found:
        return None
    return sorted(found, key=lambda one: (one.total_ns, one.seq))[(len(found) - 1) // 2]


@dataclass(frozen=True)
class Total:
    """What an actor did over some passes, in seconds."""

    busy_s: float
    wait_s: float
    by_op_s: dict[str, float]
    steps: int


def totals(found: Iterable[Pass]) -> dict[str, Total]:
    """Sums by actor; what the actors' own counters say of the same passes."""
    spans: dict[str, list[Span]] = {}
    for one in found:
        for actor, own in one.spans.items():
            spans.setdefault(actor, []).extend(own)
    made = {}
    for actor, own in spans.items():
        by_op: dict[str, int] = {}
        for span in own:
            by_op[span.op] = by_op.get(span.op, 0) + span.busy_ns
        made[actor] = Total(
            sum(by_op.values()) / 1e9,
            sum(span.wait_ns for span in own) / 1e9,
            {op: ns / 1e9 for op, ns in by_op.items()},
            len(own),
        )
    return made


def exchanges(programs: Mapping[str, Program]) -> dict[Step, list[Step]]:
    """By step, the steps of other actors whose flags it waits for."""
    setters = {
        int(step["signal"]): (actor, step_key(OPS[step["op"]], int(step["layer"]), actor))
        for actor, steps in programs.items()
        for step in steps
        if step["signal"] >= 0
    }
    return {
        step_key(OPS[step["op"]], int(step["layer"]), actor): [
            setters[int(flag)][1]
            for flag in step["wait"]
            if int(flag) in setters and setters[int(flag)][0] != actor
        ]
        for actor, steps in programs.items()
        for step in steps
    }


def step_key(op: str, layer: int, actor: str) -> Step:
    """A prediction may be shown by another actor than the one whose step it is; shares are not."""
    return op, layer, actor if op in ("hot", "cold") else ""


def label(actor: str) -> str:
    """An actor's name for people, such as "CPU executor 1"."""
    kind = actor.rstrip("0123456789")
    return f"{LABELS.get(kind, kind)} {actor.removeprefix(kind)}".rstrip()


def perfetto(
    found: Sequence[Pass], programs: Mapping[str, Program], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Passes as a trace in Chrome's JSON format; times in microseconds from the first pass on.

    `about` is plain data kept in the file: model, plan, machine.
    """
    actors = list(dict.fromkeys(actor for one in found for actor in one.spans))
    events = [event for pid, actor in enumerate(actors, 1) for event in _names(pid, actor)]
    base = min((one.begin_ns for one in found), default=0)
    waits, flow = exchanges(programs), 0
    for one in found:
        for pid, actor in enumerate(actors, 1):
            events += _slices(one, actor, pid, base)
        for source, target in _flows(one, waits):
            flow += 1
            events += _arrow(flow, source, target, actors, base)
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": dict(about)}


def _names(pid: int, actor: str) -> list[dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {
        "process_name": {"name": label(actor)},
        "process_sort_index": {"sort_index": pid},
        "thread_name": {"name": "resident loop"},
    }
    return [
        {"ph": "M", "name": name, "pid": pid, "tid": 1, "args": args}
        for name, args in facts.items()
    ]


def _slice(
    name: str, kind: str, pid: int, begin: int, end: int, base: int, **args: Any
) -> dict[str, Any]:
    at = {"ts": (begin - base) / 1000, "dur": (end - begin) / 1000}
    return {"ph": "X", "name": name, "cat": kind, "pid": pid, "tid": 1, **at, "args": args}


def _slices(one: Pass, actor: str, pid: int, base: int) -> list[dict[str, Any]]:
    own = one.spans.get(actor)
    if not own:
        return []
    events = [_slice(f"pass {one.seq}", "pass", pid, own[0].begin_ns, own[-1].end_ns, base)]
    for span in own:
        name = span.op if span.layer < 0 else f"{span.op} {span.layer}"
        args = {"layer": span.layer, "pass": span.seq, "busy_us": span.busy_ns / 1000}
        events.append(_slice(name, span.op, pid, span.begin_ns, span.end_ns, base, **args))
        if span.wait_ns > 0:
            events.append(_slice("wait", "wait", pid, span.begin_ns, span.ready_ns, base))
    return events


def _flows(one: Pass, waits: Mapping[Step, Sequence[Step]]) -> list[tuple[Span, Span]]:
    """Pairs of steps on two actors: one set the flag that the other had waited for.

    A selective merge that skipped its exchange waited for nothing: its peer was not done.
    """
    by_step = {
        step_key(span.op, span.layer, span.actor): span
        for own in one.spans.values()
        for span in own
    }
    pairs = []
    for step, target in by_step.items():
        for source in (by_step[other] for other in waits.get(step, ()) if other in by_step):
            # A GPU sets its flags inside of a step; all others at its end.
            done_ns = source.end_ns if source.op in ("hot", "cold") else source.ready_ns
            early = source.ready_ns <= target.ready_ns and done_ns <= target.ready_ns + CLOCKS_NS
            if source.actor != target.actor and early:
                pairs.append((source, target))
    return pairs


def _arrow(
    number: int, source: Span, target: Span, actors: Sequence[str], base: int
) -> list[dict[str, Any]]:
    """A flow's two ends, each inside its slice: Perfetto binds them by time."""
    carried = {"attention": "x", "predict": "active set", "hot": "y", "cold": "y"}
    shared = {"name": carried.get(source.op, source.op), "cat": "exchange", "id": number, "tid": 1}
    start = min(max(source.begin_ns, source.end_ns - 1), target.ready_ns)
    finish = min(target.ready_ns, max(target.begin_ns, target.end_ns - 1))
    pids = [actors.index(one.actor) + 1 for one in (source, target)]
    return [
        {**shared, "ph": "s", "pid": pids[0], "ts": (start - base) / 1000},
        {**shared, "ph": "f", "bp": "e", "pid": pids[1], "ts": (finish - base) / 1000},
    ]
