import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotcold.native.abi.generated import CACHE_LINE, FLAG, SEGMENT, SPAN
from hotcold.native.errors import ConfigError
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.topology import CLASSIC, Topology


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 6),
    d=st.integers(1, 300),
    n=st.integers(1, 700),
    batch=st.integers(1, 32),
    gate=st.booleans(),
    spans=st.integers(1, 50),
    topology=st.sampled_from([CLASSIC, Topology(1, 3), Topology(2, 1), Topology(3, 4)]),
)
def test_parts_lie_on_lines_and_do_not_overlap(
    layers: int, d: int, n: int, batch: int, gate: bool, spans: int, topology: Topology
) -> None:
    layout = SegmentLayout.build(
        *(layers, d, n, batch), with_gate=gate, span_capacity=spans, topology=topology
    )
    assert len(layout.span_offsets) == len(topology.actors)
    rows, lists = 4 * batch * d, layout.active_bytes
    parts = [(0, SEGMENT.itemsize), (layout.flags_offset, layout.n_flags * FLAG.itemsize)]
    parts += [(offset, spans * SPAN.itemsize) for offset in layout.span_offsets]
    for slots in layout.layers:
        assert len(slots.active) == len(slots.y) == len(topology.devices) and slots.y[0] == -1
        parts += [(slots.x, rows), *((offset, rows) for offset in slots.y[1:])]
        parts += [(offset, lists) for offset in slots.active]
    parts.sort()
    ends = [offset + size for offset, size in parts]
    assert all(offset % CACHE_LINE == 0 for offset, _ in parts)
    assert all(end <= offset for end, (offset, _) in zip(ends, parts[1:], strict=False))
    assert ends[-1] <= layout.bytes and layout.bytes % 4096 == 0


@pytest.mark.parametrize("topology", [CLASSIC, Topology(3, 2)])
def test_every_flag_is_another(topology: Topology) -> None:
    layout = SegmentLayout.build(3, 8, 8, 1, topology=topology)
    flags = [layout.flag(kind, layer) for kind in ("x", "active") for layer in range(3)]
    handed = range(1, len(topology.devices))
    flags += [layout.flag("y", layer, device) for layer in range(3) for device in handed]
    flags += [layout.spare_flag(index) for index in range(4)]
    assert sorted(flags) == list(range(layout.n_flags))
    for call in (lambda: layout.flag("z", 0), lambda: layout.flag("x", 3)):
        with pytest.raises(ConfigError, match="no flag"):
            call()
    with pytest.raises(ConfigError, match="no spare flag 4"):
        layout.spare_flag(4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layers", 0), ("d_model", -4), ("n_neurons", 2**40), ("max_batch", 33), ("n_flags", 0)],
)
def test_absurd_sizes_are_refused(name: str, value: int) -> None:
    sizes = dict(n_layers=2, d_model=16, n_neurons=32, max_batch=1, n_flags=8) | {name: value}
    with pytest.raises(ConfigError, match=f"{name} {value} is not between"):
        SegmentLayout.build(**sizes)
