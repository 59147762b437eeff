import threading
from collections.abc import Iterator

import numpy as np
import pytest

from hotcold.native.abi.generated import SPAN
from hotcold.runtime.exchange.segment import Segment, SegmentLayout
from hotcold.runtime.topology import CLASSIC
from hotcold.runtime.tracing import spans

CAPACITY = 8


@pytest.fixture
def segment() -> Iterator[Segment]:
    layout = SegmentLayout.build(1, 16, 16, 1, span_capacity=CAPACITY)
    with Segment.private(layout, epoch=1) as made:
        yield made


def write(segment: Segment, actor: str, number: int) -> None:
    """What the native loop does after a step: fill the slot, then count it."""
    index = CLASSIC.actors.index(actor)
    offset = segment.native.span_offset[index] + (number % CAPACITY) * SPAN.itemsize
    slot = segment.view(offset, SPAN.itemsize).view(SPAN)
    slot[0] = (number, number + 10, number + 30, number, number % 5 - 1, number % 7)
    segment.native.actor[index].span_count = number + 1


def test_reads_what_was_written(segment: Segment) -> None:
    assert spans.read(segment, "cpu") == []
    for number in range(3):
        write(segment, "cpu", number)
    first, second, third = spans.read(segment, "cpu")
    assert first == spans.Span("cpu", "embed", -1, 0, 0, 10, 30)
    assert (second.op, third.op, third.layer) == ("attention", "predict", 1)
    assert (third.wait_ns, third.busy_ns) == (10, 20)
    assert spans.read(segment, "gpu") == []


@pytest.mark.parametrize("count", [7, 8, 9, 20, 1000])
def test_keeps_the_last_ones_in_order(segment: Segment, count: int) -> None:
    for number in range(count):
        write(segment, "predictor", number)
    array, after = spans.read_array(segment, "predictor")
    kept = min(count, CAPACITY - 1)  # the oldest slot may be the one being written
    assert array["begin_ns"].tolist() == list(range(count - kept, count)) and after == count


def test_goes_on_where_the_last_call_ended(segment: Segment) -> None:
    numbers, after = [], 0
    for number in range(12):
        write(segment, "gpu", number)
        if number % 3 == 2:
            array, after = spans.read_array(segment, "gpu", after)
            numbers += array["begin_ns"].tolist()
    assert numbers == list(range(12))
    assert spans.read_array(segment, "gpu", after)[0].size == 0
    assert spans.read_array(segment, "gpu", 10**9)[0].size == 0


def test_a_reader_beside_the_writer_never_sees_a_torn_span(segment: Segment) -> None:
    stop = threading.Event()

    def run() -> None:
        number = 0
        while not stop.is_set():
            write(segment, "cpu", number)
            number += 1

    writer = threading.Thread(target=run)
    writer.start()
    try:
        for _ in range(300):
            array, _ = spans.read_array(segment, "cpu")
            begin = array["begin_ns"].astype(np.int64)
            assert np.all(np.diff(begin) == 1) and np.all(array["end_ns"] == begin + 30)
    finally:
        stop.set()
        writer.join()
