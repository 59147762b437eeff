"""Time by phase out of the span rings: sums over whole passes, whoever's lane it is."""

from collections.abc import Iterator

import pytest

from hotcold.native.abi.generated import SPAN
from hotcold.native.abi.names import OPS
from hotcold.runtime.exchange.segment import Segment, SegmentLayout
from hotcold.runtime.topology import CLASSIC
from hotcold.runtime.tracing.phases import phase_times

CAPACITY = 64


@pytest.fixture
def segment() -> Iterator[Segment]:
    layout = SegmentLayout.build(2, 16, 16, 1, span_capacity=CAPACITY)
    with Segment.private(layout, epoch=1) as made:
        yield made


def put(segment: Segment, actor: str, seq: int, op: str, begin: int, ready: int, end: int) -> None:
    index = CLASSIC.actors.index(actor)
    number = segment.actor_state(actor).span_count
    offset = segment.native.span_offset[index] + (number % CAPACITY) * SPAN.itemsize
    slot = segment.view(offset, SPAN.itemsize).view(SPAN)
    slot[0] = (begin, ready, end, seq, 0, OPS.index(op))
    segment.native.actor[index].span_count = number + 1


def one_pass(segment: Segment, seq: int, scale: int = 1) -> None:
    """4 ms of steps on the GPU lane from seq * 10 ms on, of which 1 ms is waiting."""
    at = seq * 10_000_000
    put(segment, "gpu", seq, "attention", at, at, at + 1_000_000 * scale)
    put(segment, "predictor", seq, "predict", at, at + 500_000, at + 700_000)
    put(segment, "cpu", seq, "cold", at, at + 700_000, at + 2_000_000)
    put(segment, "gpu", seq, "hot", at + 1_000_000, at + 1_000_000, at + 2_000_000)
    put(segment, "gpu", seq, "merge", at + 2_000_000, at + 3_000_000, at + 3_500_000)
    put(segment, "gpu", seq, "head", at + 3_500_000, at + 3_500_000, at + 4_000_000)


def test_the_phases_of_the_leading_lane_add_up_to_a_pass(segment: Segment) -> None:
    for seq in range(1, 6):
        one_pass(segment, seq)
    found = phase_times(segment)
    expected = {"attention": 1, "hot": 1, "merge": 0.5, "head": 0.5, "wait": 1, "pass": 4}
    expected |= {"predict": 0.2, "cold": 1.3}
    assert found == pytest.approx({name: ms / 1e3 for name, ms in expected.items()})
    own = ("attention", "hot", "merge", "head", "wait")
    assert sum(found[name] for name in own) == pytest.approx(found["pass"])


def test_only_the_newest_whole_passes_count(segment: Segment) -> None:
    one_pass(segment, 1, scale=100)  # the oldest in the ring, which may be torn
    for seq in range(2, 9):
        one_pass(segment, seq, scale=50 if seq < 6 else 1)
    put(segment, "gpu", 9, "attention", 90_000_000, 90_000_000, 99_000_000)  # not over yet
    assert phase_times(segment, passes=3)["attention"] == pytest.approx(1e-3)
    assert phase_times(segment)["attention"] > 1e-2


def test_nothing_is_said_before_the_second_pass(segment: Segment) -> None:
    assert phase_times(segment) == {}
    one_pass(segment, 1)
    assert phase_times(segment) == {}
    one_pass(segment, 2)
    assert set(phase_times(segment)) > {"attention", "cold", "wait", "pass"}
