"""Rates, shares and lines of text out of messages."""

import re
from dataclasses import replace

import pytest
from support.telemetry import report

from hotcold.actors.telemetry.terminal import lines
from hotcold.runtime.telemetry.live import LiveView
from hotcold.runtime.telemetry.message import LayerLoad


def fed(numbers: int = 40, **more: object) -> LiveView:
    view = LiveView()
    for number in range(numbers):
        for actor in ("gpu", "cpu", "predictor"):
            view.add(report(actor, number, tokens=3 * number), at_s=0.1 * number)
    return view


def test_rates_are_of_the_last_two_seconds() -> None:
    seen = fed().snapshot(at_s=4.0)
    assert seen["tokens_per_s"] == pytest.approx(30.0)
    assert seen["actors"]["gpu"]["busy"] == pytest.approx(0.5)
    assert seen["actors"]["cpu"]["wait"] == pytest.approx(0.2)
    assert seen["actors"]["cpu"]["gb_per_s"] == pytest.approx(1.0)
    assert seen["actors"]["gpu"]["by_op_us"] == {"attention": 4.0, "hot": 4.0}
    assert seen["gpu_neuron_load"] == pytest.approx(0.5)
    assert seen["recall"]["recall"] == 1.0 and seen["requests"]["losses"] == 3
    assert seen["silent_s"] == pytest.approx(0.1)


def test_a_new_epoch_and_another_engine_begin_anew() -> None:
    view = fed()
    view.add(report("gpu", 0, epoch=2, time_ns=1, tokens=0), at_s=4.0)
    seen = view.snapshot(at_s=4.0)
    assert seen["epoch"] == 2 and seen["tokens_per_s"] == 0.0
    view.add(report("gpu", 0, engine="other"), at_s=4.1)
    assert list(view.snapshot()["actors"]) == ["gpu"]


def test_a_list_that_was_being_written_leaves_what_was_seen() -> None:
    view = fed()
    unseen = LayerLoad((16, 48), (None, None), 0, 0)
    view.add(replace(report(number=41), layers=(unseen, unseen), active=()), at_s=4.1)
    assert view.layers[0].seq == 12 and list(view.active) == [0]


def test_of_nothing_there_is_a_view_too() -> None:
    seen = LiveView().snapshot()
    assert seen["actors"] == {} and seen["gpu_neuron_load"] is None
    assert lines(seen, 40)


@pytest.mark.parametrize("width", [24, 40, 60, 72, 80, 132])
def test_lines_fit_any_terminal(width: int) -> None:
    for seen in (fed().snapshot(at_s=4.0), fed(1).snapshot(at_s=99.0)):
        made = lines(seen, width)
        assert max(map(len, made)) <= max(width, 32)
    text = "\n".join(lines(fed().snapshot(at_s=4.0), 100))
    for words in (
        "30.0 tokens/s",
        "1 running",
        "2 waiting",
        "recoveries 3",
        "50.0 %",
        "recall 100",
    ):
        assert words in text
    assert re.search(r"^0 +#+\.+ ###+=+\.+ +7\.8 %$", text, re.M)
    assert "not to be seen" in text


def test_paint_changes_no_column() -> None:
    seen = fed().snapshot(at_s=4.0)
    painted = lines(seen, 80, lambda text, colour: f"<{colour}>{text}</>" if text else "")
    assert [re.sub(r"<[^>]*>", "", line) for line in painted] == lines(seen, 80)
