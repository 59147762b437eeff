"""Passes out of spans, their sums, and the Perfetto file, checked against its format's rules."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.tracing.spans import Span, read
from hotcold.runtime.tracing.timeline import Pass, exchanges, passes, perfetto, totals, typical


def span(actor: str, op: str, seq: int, begin: int, ready: int, end: int, layer: int = 0) -> Span:
    base = 1_000_000 * seq
    return Span(actor, op, layer, seq, base + begin, base + ready, base + end)


def three() -> dict[str, list[Span]]:
    """Three passes; the middle one takes longest, the CPU executor begins to wait too early."""
    spans: dict[str, list[Span]] = {"gpu": [], "cpu": []}
    for seq, length in ((1, 80), (2, 300), (3, 120)):
        spans["gpu"] += [
            span("gpu", "attention", seq, 0, 0, 30),
            span("gpu", "merge", seq, 30, 70, length),
        ]
        spans["cpu"] += [span("cpu", "cold", seq, -500, 35, 65)]
    return spans


def test_passes_begin_with_the_gpu_executor_and_cut_earlier_waits() -> None:
    found = passes(three())
    assert [(one.seq, one.total_ns) for one in found] == [(1, 80), (2, 300), (3, 120)]
    assert found[0].spans["cpu"][0].wait_ns == 35, "idle time before a pass is no wait"
    assert [one.seq for one in passes(three(), since_ns=2_000_100)] == [2, 3]
    middle = typical(found)
    assert middle is not None and middle.seq == 3
    assert typical([]) is None and passes({}) == [] and passes({"gpu": []}) == []


def test_a_pass_whose_beginning_the_ring_forgot_is_left_out() -> None:
    spans = three()
    spans["gpu"] = spans["gpu"][1:]
    assert [one.seq for one in passes(spans)] == [2, 3]


def test_sums() -> None:
    sums = totals(passes(three()))
    assert sums["gpu"].busy_s == pytest.approx((3 * 30 + 10 + 230 + 50) * 1e-9)
    assert sums["gpu"].wait_s == pytest.approx(3 * 40e-9)
    assert sums["gpu"].by_op_s["attention"] == pytest.approx(90e-9)
    assert (sums["cpu"].steps, sums["cpu"].by_op_s.keys()) == (3, {"cold"})


def test_clocks_that_disagree_a_little_never_make_slices_overlap() -> None:
    spans = three()
    spans["gpu"][1] = replace(spans["gpu"][1], begin_ns=spans["gpu"][0].end_ns - 7)
    one = passes(spans)[0]
    assert one.spans["gpu"][1].begin_ns == one.spans["gpu"][0].end_ns


# What Perfetto's importer asks of JSON events ("Trace Event Format", Google, sections on complete,
# flow and metadata events).
def check_format(text: str) -> list[dict[str, Any]]:
    trace = json.loads(text)
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    processes, threads = set(), set()
    slices: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    flows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str) and event["name"]
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            (processes if event["name"] == "process_name" else threads).add(event["pid"])
            assert event["args"]
            continue
        assert isinstance(event["cat"], str) and event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            slices[event["pid"], event["tid"]].append(event)
        else:
            assert event["ph"] in ("s", "f")
            flows[event["cat"], event["name"], event["id"]].append(event)
    assert {pid for pid, _ in slices} <= processes & threads
    for own in slices.values():
        check_nesting(own)
    for ends in flows.values():
        start, finish = sorted(ends, key=lambda event: event["ph"], reverse=True)
        assert (start["ph"], finish["ph"], finish["bp"]) == ("s", "f", "e")
        assert start["ts"] <= finish["ts"] and start["pid"] != finish["pid"]
        for end in ends:
            assert enclosing(slices[end["pid"], end["tid"]], end["ts"]), "a flow binds to a slice"
    events: list[dict[str, Any]] = trace["traceEvents"]
    return events


def ns(event: Mapping[str, Any], key: str = "ts") -> int:
    return round(1000 * event[key])


def check_nesting(slices: Sequence[Mapping[str, Any]]) -> None:
    """On one track a slice lies within another or beside it."""
    open_until: list[int] = []
    for event in sorted(slices, key=lambda event: (ns(event), -ns(event, "dur"))):
        begin, end = ns(event), ns(event) + ns(event, "dur")
        while open_until and open_until[-1] <= begin:
            open_until.pop()
        assert not open_until or end <= open_until[-1], f"{event['name']} leaves the one it is in"
        open_until.append(end)
    depth = {"pass": 0, "wait": 2}
    for event in slices:
        around = [
            other
            for other in slices
            if other is not event
            and ns(other) <= ns(event)
            and ns(event) + ns(event, "dur") <= ns(other) + ns(other, "dur")
            and (ns(other, "dur") > ns(event, "dur") or other["cat"] == "pass")
        ]
        assert len(around) <= depth.get(event["cat"], 1), event


def enclosing(slices: Sequence[Mapping[str, Any]], at: float) -> list[str]:
    return [e["name"] for e in slices if ns(e) <= round(1000 * at) < ns(e) + ns(e, "dur")]


def recorded() -> tuple[list[Pass], Any, dict[str, Any]]:
    """Real passes of three loops, one process."""
    prepared = prepare_model(EngineConfig(predictor="exact", policy="random"))
    deployment = deploy(prepared, solve(prepared))
    with LocalSession(deployment) as local:
        local.logits([5, 6, 7])
        spans = {actor: read(local.segment, actor) for actor in local.executors}
        counters = {actor: local.segment.actor_state(actor) for actor in local.executors}
    return passes(spans), deployment.programs, counters


def test_real_passes_make_a_well_formed_file() -> None:
    found, programs, counters = recorded()
    assert len(found) == 1  # three tokens of a prompt are one pass
    sums = totals(found)
    for actor, counter in counters.items():
        assert sums[actor].busy_s == pytest.approx(counter.busy_ns / 1e9, rel=1e-9)
        # The counter starts with the pass, the spans with its first step, a moment later.
        assert sums[actor].wait_s == pytest.approx(counter.wait_ns / 1e9, rel=0.02, abs=2e-4)
    events = check_format(json.dumps(perfetto(found, programs, {"model": "embedded"})))
    slices = [event for event in events if event["ph"] == "X"]
    steps = [event for event in slices if event["cat"] not in ("pass", "wait")]
    assert len(steps) == sum(len(program) for program in programs.values())
    for pid, actor in ((1, "gpu"), (2, "cpu"), (3, "predictor")):
        own = [event for event in steps if event["pid"] == pid]
        waits = [e["dur"] for e in slices if e["pid"] == pid and e["cat"] == "wait"]
        assert sum(e["args"]["busy_us"] for e in own) == pytest.approx(1e6 * sums[actor].busy_s)
        assert sum(waits) == pytest.approx(1e6 * sums[actor].wait_s, abs=0.1)


def test_flows_are_the_exchanges_of_the_program() -> None:
    found, programs, _ = recorded()
    waits = exchanges(programs)
    assert waits["cold", 3, "cpu"] == [("attention", 3, ""), ("predict", 3, "")]
    assert waits["merge", 3, ""] == [("predict", 3, ""), ("cold", 3, "cpu")]
    assert waits["attention", 3, ""] == []
    events = check_format(json.dumps(perfetto(found, programs, {})))
    starts = [event for event in events if event["ph"] == "s"]
    layers = 1 + max(layer for _, layer, _ in waits)
    assert {event["name"] for event in starts} == {"x", "active set", "y"}
    assert len([e for e in starts if e["name"] == "active set"]) == 3 * layers  # hot, cold, merge
    assert len([e for e in starts if e["name"] == "y"]) <= layers  # skipped where no cold fired


def test_a_gpus_passes_have_predictions_among_the_gpu_executors_steps() -> None:
    """No predictor's loop; flags leave inside of a step; clocks agree to a microsecond or so."""
    prepared = prepare_model(EngineConfig(predictor="exact", policy="random"))
    programs = deploy(prepared, solve(prepared)).programs
    spans = {
        "gpu": [
            span("gpu", "embed", 1, 0, 0, 1_000, layer=-1),
            span("gpu", "attention", 1, 1_000, 1_000, 11_000),
            span("gpu", "predict", 1, 11_000, 11_000, 21_000),
            span("gpu", "hot", 1, 21_000, 21_000, 31_000),
            span("gpu", "merge", 1, 31_000, 40_000, 42_000),
        ],
        "cpu": [span("cpu", "cold", 1, -9_000, 20_000, 41_000)],
        "predictor": [],
    }
    found = passes(spans)
    events = check_format(json.dumps(perfetto(found, programs, {})))
    assert {event["pid"] for event in events} == {1, 2}
    flows = {(e["name"], e["pid"], e["ts"]) for e in events if e["ph"] in "sf"}
    assert flows == {
        *(("x", 1, 10.999), ("x", 2, 20.0)),
        *(("active set", 1, 20.0), ("active set", 2, 20.0)),  # before the step that sent it ended
        *(("y", 2, 40.0), ("y", 1, 40.0)),  # 1 us after the GPU had it, says the clock
    }


def test_the_checker_of_the_format_notices() -> None:
    found, programs, _ = recorded()
    good = perfetto(found, programs, {})
    steps = [e for e in good["traceEvents"] if e["ph"] == "X" and e["cat"] == "attention"]
    steps[1]["dur"] += 1e6
    with pytest.raises(AssertionError, match="leaves the one it is in"):
        check_format(json.dumps(good))


def test_nothing_recorded_makes_an_empty_file() -> None:
    assert check_format(json.dumps(perfetto([], {}, {}))) == []
    assert totals([]) == {} and np.isfinite(len(exchanges({})))
