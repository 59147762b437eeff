"""Spans of real actors, and budgets that change while the actors stay up."""

from pathlib import Path

import pytest

from hotcold.actors import Engine
from hotcold.native.errors import ConfigError
from hotcold.runtime.tracing.timeline import exchanges, passes, step_key, totals

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
IDS = [5, 6, 7, 8]


def ids_of(engine: Engine) -> list[int]:
    return [t.id for t in engine.generate(IDS, max_tokens=12, ignore_eos=True)]


@pytest.mark.parametrize("transport", ["native", "ray"])
def test_spans_of_all_actors_are_on_one_clock_and_agree_with_the_counters(
    tiny_model: Path, transport: str
) -> None:
    with Engine.launch(tiny_model, predictor="exact", transport=transport) as engine:
        ids_of(engine)
        found, stats = passes(engine.spans()), engine.stats()
        waits = exchanges(engine.programs)
        with Engine.connect(engine.name) as other:
            assert [one.seq for one in passes(other.spans())] == [one.seq for one in found]
    assert len(found) == 12  # the prompt, and 11 tokens fed back
    sums = totals(found)
    for actor in ("gpu", "cpu", "predictor"):
        assert sums[actor].busy_s == pytest.approx(stats.actors[actor].busy_s, rel=1e-6)
    for one in found:
        spans = [span for own in one.spans.values() for span in own]
        by_step = {step_key(span.op, span.layer, span.actor): span for span in spans}
        for step, own in by_step.items():
            if step[0] == "merge":
                continue  # may leave out what it need not wait for
            for source in waits[step]:
                assert by_step[source].end_ns <= own.ready_ns or transport == "ray"
                assert by_step[source].end_ns <= own.end_ns


def test_a_new_budget_moves_neurons_and_no_token(tiny_model: Path) -> None:
    with Engine.launch(tiny_model, predictor="exact", vram="60KB", policy="greedy") as engine:
        before, pids = ids_of(engine), {a.pid for a in engine.stats().actors.values()}
        small = engine.stats().bytes_by_device["gpu0"]
        engine.replan(policy="greedy", vram="80KB")
        assert ids_of(engine) == before
        large = engine.stats().bytes_by_device["gpu0"]
        assert small <= 60_000 < large <= 80_000
        with pytest.raises(ConfigError, match="needs a policy"):
            engine.replan(vram="60KB")
        engine.replan(schedule="fetch")
        engine.replan(policy="random")  # budget and schedule are still the last ones
        assert ids_of(engine) == before
        stats = engine.stats()
        assert stats.schedule == "fetch" and 60_000 < stats.bytes_by_device["gpu0"] <= 80_000
        assert "fetched over the bus" in stats.actors["gpu"].role
        assert {a.pid for a in stats.actors.values()} == pids
