"""The format of telemetry: what is sent arrives, and what anyone else sends is refused."""

from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.telemetry import report

from hotcold.runtime.telemetry.message import MAX_BYTES, MessageError, decode, encode


@pytest.mark.parametrize("actor", ["gpu", "cpu"])
def test_a_report_arrives_as_it_was(actor: str) -> None:
    sent = report(actor, 3)
    found = decode(encode(sent))
    plain = {"spans": sent.spans[:0], "active": ()}
    assert replace(found, **plain) == replace(sent, **plain)
    assert np.array_equal(found.spans, sent.spans)
    for one, other in zip(found.active, sent.active, strict=True):
        assert (one.layer, one.seq, one.is_exact) == (other.layer, other.seq, other.is_exact)
        assert all(np.array_equal(a, b) for a, b in zip(one.ids, other.ids, strict=True))


def changed(**more: Any) -> bytes:
    packed: bytes = msgpack.packb({**msgpack.unpackb(encode(report())), **more})
    return packed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgpack.packb([1]),
        msgpack.packb({"v": 1}),
        b"\x93" * 100_000,  # nested without an end
        b"\xdd\xff\xff\xff\xff",  # an array said to be of four milliards
        b"\xc6\xff\xff\xff\xff",
        bytes(MAX_BYTES + 1),
        msgpack.packb({"v": msgpack.ExtType(4, b"x")}),
        changed(v=2),
        changed(engine=7),
        changed(engine="x" * 10_000),
        changed(counters={"bytes": -1}),
        changed(counters={"bytes": True}),
        changed(counters={1: 1}),
        changed(spans=b"odd"),
        changed(layers=[[1]]),
        changed(layers=[[[1], [None], 1, 1, 1]]),
        changed(active=[[9, 1, True, [b""]]]),
        changed(active=[[0, 1, True, [b"odd"]]]),
        changed(about={"model": {"deep": 1}}),
        changed(unix_s="now"),
        changed(pid=1 << 63, epoch=-1),
    ],
)
def test_what_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


@settings(max_examples=150, deadline=None)
@given(at=st.integers(0, 1 << 16), by=st.binary(max_size=6), cut=st.integers(0, 12))
def test_damaged_messages_are_refused_or_read(at: int, by: bytes, cut: int) -> None:
    data = encode(report())
    at %= len(data)
    damaged = data[:at] + by + data[at + cut :]
    try:
        decode(damaged)
    except MessageError:
        pass
