import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotcold.native.bindings import segment as native
from hotcold.native.errors import ConfigError
from hotcold.runtime.exchange.layout import LINE, SegmentLayout, active_list_bytes


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 6),
    d=st.integers(1, 300),
    n=st.integers(1, 700),
    batch=st.integers(1, 32),
    gate=st.booleans(),
    spans=st.integers(1, 50),
)
def test_parts_lie_on_lines_and_do_not_overlap(
    layers: int, d: int, n: int, batch: int, gate: bool, spans: int
) -> None:
    layout = SegmentLayout.build(layers, d, n, batch, with_gate=gate, span_capacity=spans)
    rows, lists = 4 * batch * d, active_list_bytes(n, batch, gate)
    parts = [(0, native.HEADER_BYTES), (layout.flags_offset, layout.n_flags * native.FLAG_BYTES)]
    parts += [(offset, spans * native.SPAN_BYTES) for offset in layout.span_offsets]
    for slots in layout.layers:
        parts += [(slots.x, rows), (slots.y, rows), *((offset, lists) for offset in slots.active)]
    parts.sort()
    ends = [offset + size for offset, size in parts]
    assert all(offset % LINE == 0 for offset, _ in parts)
    assert all(end <= offset for end, (offset, _) in zip(ends, parts[1:], strict=False))
    assert ends[-1] <= layout.bytes and layout.bytes % 4096 == 0


def test_every_flag_is_another() -> None:
    layout = SegmentLayout.build(3, 8, 8, 1)
    flags = [layout.flag(kind, layer) for kind in ("x", "active", "y") for layer in range(3)]
    flags += [layout.spare_flag(index) for index in range(4)]
    assert sorted(flags) == list(range(layout.n_flags))
    for call in (lambda: layout.flag("z", 0), lambda: layout.flag("x", 3)):
        with pytest.raises(ConfigError, match="no flag"):
            call()
    with pytest.raises(ConfigError, match="no spare flag 4"):
        layout.spare_flag(4)


@pytest.mark.parametrize("capacity", [1, 15, 16, 17, 700])
@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("gate", [False, True])
def test_active_lists_are_as_long_as_in_c(capacity: int, batch: int, gate: bool) -> None:
    found = native.active_bytes(capacity, batch, gate)
    if found == 0:
        pytest.skip("hc_active_bytes is a stub in this build")
    assert found == active_list_bytes(capacity, batch, gate)


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layers", 0), ("d_model", -4), ("n_neurons", 2**40), ("max_batch", 33), ("n_flags", 0)],
)
def test_absurd_sizes_are_refused(name: str, value: int) -> None:
    sizes = dict(n_layers=2, d_model=16, n_neurons=32, max_batch=1, n_flags=8) | {name: value}
    with pytest.raises(ConfigError, match=f"{name} {value} is not between"):
        SegmentLayout.build(**sizes)
