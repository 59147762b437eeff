"""The layout of GPU memory against sums worked out by hand, without a GPU."""

from dataclasses import replace
from typing import Any

import pytest

from hotcold.native.abi.generated import DEVICE_GRANULE
from hotcold.native.abi.names import PARTS
from hotcold.native.bindings.gpu_layout import GpuShape, LayerShape

LAYER = LayerShape(owned=40, resident=30)
PREDICTED = replace(LAYER, predicted_at=0, bias=True, folds_norm=True, hidden=10, fc_bytes=2)
SIGN = replace(LAYER, predicted_at=0, form="sign", bias=True, column=True)
SHAPE = GpuShape(
    n_layers=2, heads=4, kv_heads=2, head_dim=16, element_bytes=2, kv_bytes=4, d=64, n=96,
    vocab=100, context=300, embed_dim=64, record_bytes=384, norm_bias=False, biases=False,
    gated=True, final_norm=True, rotary=True, projected=False, max_batch=3, layers=(LAYER, LAYER),
    n_chunks=8,
)  # fmt: skip

# Bytes of each tensor of SHAPE, batches rounded up to 4.
TABLES = [2 * 96 * 4, 2 * 4 * 4, 2 * 4 * 8 * 4]  # proposals, counts, fired
NORMS = [256, 256]
ATTENTION = [128 * 64 * 2, 64 * 64 * 2]  # qkv, o
RECORDS = [30 * 384, 40 * 8]  # and where each of the owned ones is
KV = [32 * 300 * 4] * 2
OWNERS = [12, 12, 4, 36, 36]  # bits, rows, relay, bounds, starts
ENDS = [144, 4 * 100 * 4, 256, 300 * 8 * 4, 300 * 8 * 4, 100 * 64 * 2, 4, 8, 3 * 8 * 8]
SUMS = [16 * 4, 16 * 2 * 16 * 4, 16 * 2 * 8]  # of attention: 16 heads, two pieces
STREAM = [4 * 64 * 4, 4 * 64 * 4, 4 * 128 * 4, 4 * 64 * 4, 8 * 4 * 64 * 4]
LISTS = [40 * 4 * 4, 40 * 4, 40 * 4, 4, 36, 8]  # relu(gate) * up, then one hot list
COLD = [96 * 4, 96 * 4]
ALL = [TABLES, *[[*NORMS, *ATTENTION, *RECORDS, *KV, *OWNERS]] * 2, ENDS, SUMS, STREAM, LISTS, COLD]


def rounded(*sizes: int) -> int:
    """Each tensor begins on a multiple of 256 bytes."""
    return sum(-(-size // 256) * 256 for size in sizes)


def taken(**changes: Any) -> int:  # noqa: ANN401 - of GpuShape
    """Device memory of SHAPE with some changes."""
    return replace(SHAPE, **changes).executor().device


def test_an_executor_takes_the_sum_of_its_tensors() -> None:
    count = SHAPE.executor()
    assert count.device == rounded(*(size for part in ALL for size in part))
    assert (count.host, count.mailbox) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "gone", "come"),
    [
        ({"kv_bytes": 2}, KV * 2, [32 * 300 * 2] * 4),
        ({"slots": 3}, KV * 2, [3 * 32 * 300 * 4] * 4),
        ({"norm_bias": True}, [], [256] * 5),
        ({"biases": True}, [], [128 * 4, 256, 256] * 2),
        ({"final_norm": False}, [256], []),
        ({"rotary": False}, [9600, 9600], []),
        ({"context": 256}, [9600, 9600, *KV * 2, *SUMS[1:]], [8192, 8192, *[32 * 256 * 4] * 4]),
        (
            {"projected": True, "embed_dim": 128},
            [100 * 64 * 2],
            [100 * 128 * 2, 128 * 64 * 2, 4 * 128 * 4],
        ),
        ({"audit_every": 2}, LISTS[:3], [89 * 4 * 4, 89 * 4, 89 * 4]),
        (
            {"max_batch": 1},
            [1600, *SUMS, *STREAM, LISTS[0]],
            [400, 16, 4 * 2 * 16 * 4, 4 * 2 * 8, 256, 256, 512, 256, 8 * 64 * 4, 40 * 4],
        ),
        ({"layers": (LAYER, replace(LAYER, resident=40))}, [30 * 384], [40 * 384]),
        ({"layers": (LAYER, replace(LAYER, record_bytes=224))}, [30 * 384], [30 * 224]),
        ({"widens": True}, [], []),
    ],
)
def test_each_property_counts(changes: dict[str, Any], gone: list[int], come: list[int]) -> None:
    assert taken(**changes) - taken() == rounded(*come) - rounded(*gone)


def test_modules_on_the_host_leave_the_device() -> None:
    for name, sizes in {"attention": ATTENTION, "kv": KV}.items():
        there = replace(LAYER, host_parts=PARTS[name])
        count = replace(SHAPE, layers=(LAYER, there)).executor()
        assert taken() - count.device == count.host == rounded(*sizes)
        assert count.rounding == (len(sizes) + 2) * 255
    count = replace(SHAPE, head_on_host=True).executor()
    assert taken() - count.device == count.host == rounded(100 * 64 * 2)
    assert count.reserve == count.device + 3 * 255


EARLY = [160, 160, 4, 36, 8]  # one hot list more, of the layer that is predicted a layer early
MATRICES, QUANTISED = [384, 1280, 1920], [384, 640, 960, 40, 384]
SIGNS = [384, 96 * 8, 384, 256]


@pytest.mark.parametrize(
    ("layer", "i8", "each", "scratch"),
    [
        (PREDICTED, False, MATRICES, [4 * 10 * 4]),
        (replace(PREDICTED, fc_bytes=1), True, QUANTISED, [4 * 10 * 4]),
        (replace(PREDICTED, bias=False), False, MATRICES[1:], [4 * 10 * 4]),
        (SIGN, False, SIGNS, [4 * 8 * 8, 4 * 4]),
        (replace(SIGN, bias=False, column=False), True, SIGNS[1:3], [4 * 8 * 8, 4 * 4]),
    ],
)
def test_predictors_count(layer: LayerShape, i8: bool, each: list[int], scratch: list[int]) -> None:
    more = taken(layers=(layer, layer), predictor_i8=i8) - taken()
    assert more == rounded(*each, *each, *scratch, *EARLY)
    there = replace(layer, host_parts=PARTS["predictor"])
    count = replace(SHAPE, layers=(layer, there), predictor_i8=i8).executor()
    moved = SIGNS[1:2] if layer.form == "sign" else [s for s in each if s in (1280, 1920, 640, 960)]
    assert count.host == rounded(*moved) == taken() + more - count.device


def test_a_dense_prompt_shares_the_scratch_of_a_pass() -> None:
    """70 tokens need room for 128; a piece is the whole layer."""
    ids, slots = [384, 384], [96 * 384] * 3
    floats = [128 * wide * 4 for wide in (64, 64, 128, 64, 96)]
    dense = rounded(*floats, 512, 512, 8)
    scratch = rounded(*STREAM, *LISTS, *COLD)
    assert taken(prompt_rows=70) - taken() == rounded(*ids, *slots) + dense - scratch
    assert taken(prompt_rows=128) == taken(prompt_rows=70) < taken(prompt_rows=129)
    everything = (replace(LAYER, owned=96, resident=96),) * 2
    lists = rounded(96 * 4 * 4, 96 * 4, 96 * 4, 4, 36, 8) - rounded(*LISTS)
    more = taken(layers=everything, prompt_rows=70) - taken(layers=everything)
    assert more == rounded(*ids) + dense - scratch - lists  # nothing is streamed
    wide = 8192 * 128 * 4  # as wide as its embeddings come in
    projected: dict[str, Any] = {"projected": True, "embed_dim": 8192}
    more = taken(prompt_rows=70, **projected) - taken(**projected)
    inwards, outwards = 8192 * 64 * 2, 4 * 8192 * 4
    assert more == rounded(*ids, *slots, 512, 512, 8, inwards) + 2 * 32768 + 3 * wide - (
        scratch + outwards
    )


@pytest.mark.parametrize(
    ("changes", "record"),
    [
        ({}, 3 * 128),
        ({"element_bytes": 4}, 3 * 256),
        ({"d": 65, "embed_dim": 65}, 3 * 144),
        ({"gated": False}, 2 * 128 + 16),
    ],
)
def test_a_dense_prompt_has_room_for_a_piece_of_widened_neurons(
    changes: dict[str, Any], record: int
) -> None:
    """Float16, or float32 where the other matrices are; a bias behind plain ones."""
    dense = {**changes, "prompt_rows": 70}
    assert taken(**dense, widens=True) - taken(**dense) == rounded(96 * record)
    assert taken(**changes, widens=True) == taken(**changes)


def test_slots_of_a_dense_prompt_hold_the_longest_record_that_is_streamed() -> None:
    both = replace(LAYER, record_bytes=480)  # 10 of which are read over the bus, 56 are not owned
    rest = replace(both, resident=40)
    bus = replace(both, owned=96, resident=90)
    none = replace(both, owned=96, resident=96)
    for layer, record in ((both, 480), (rest, 384), (bus, 480), (none, 0)):
        shape = replace(SHAPE, layers=(layer, layer))
        records = rounded(layer.resident * 480) * 2
        plain = replace(layer, record_bytes=0, resident=96, owned=96)
        alone = replace(shape, layers=(plain, plain), prompt_rows=70).executor().device
        more = replace(shape, prompt_rows=70).executor().device - alone
        more += 2 * (rounded(96 * 384) + rounded(96 * 8) - rounded(layer.owned * 8)) - records
        assert more == rounded(*[96 * record] * 3)


def test_a_dense_prompt_keeps_the_proposals_of_layers_that_are_alive() -> None:
    both = {name: (layer,) * 2 for name, layer in (("matrices", PREDICTED), ("sign", SIGN))}
    for layers in both.values():
        plain = tuple(replace(layer, predicted_at=-1) for layer in layers)
        more = taken(layers=layers, prompt_rows=70) - taken(layers=plain, prompt_rows=70)
        proposals = [2 * 128 * 96, 128 * 12]
        each = SIGNS if layers[0].form == "sign" else MATRICES
        assert more == rounded(*each, *each, *proposals)
    quantised = tuple(replace(layer, fc_bytes=1) for layer in both["matrices"])
    less = taken(layers=both["matrices"], prompt_rows=70)
    more = taken(layers=quantised, predictor_i8=True, prompt_rows=70) - less
    assert more == 2 * (rounded(*QUANTISED) - rounded(*MATRICES)) + rounded(2 * 10 * 96)


def test_a_remote_predictor_has_memory_of_its_own_and_a_mailbox() -> None:
    layers = (PREDICTED, PREDICTED)
    shape = replace(SHAPE, layers=layers, remote_predictor=True)
    count, own = shape.executor(), shape.predictor()
    assert count.device - taken() == rounded(*EARLY) - rounded(2 * 96 * 4)
    assert count.mailbox == DEVICE_GRANULE  # words, two inputs of 4 x 64 floats, proposals
    assert own.device == rounded(*MATRICES * 2, 256, 256, 144, 24, 4 * 10 * 4, 4 * 4)
    wide = replace(shape, d=1 << 16)  # two inputs of 1 MiB each, and the words
    assert wide.executor().mailbox == 2 * DEVICE_GRANULE
    there = replace(PREDICTED, host_parts=PARTS["predictor"])
    moved = replace(shape, layers=(there, there)).predictor()
    assert own.device - moved.device == moved.host == rounded(1280, 1920) * 2


def test_sizes_past_32_bits() -> None:
    layer = LayerShape(owned=28672, resident=28672)
    shape = replace(SHAPE, d=7168, n=28672, record_bytes=28736, layers=(layer, layer))
    assert shape.executor().device > 2 * 28672 * 28736
    assert replace(shape, prompt_rows=1 << 15).executor().device > 1 << 32


def test_every_layer_is_described() -> None:
    with pytest.raises(ValueError, match="1 layers are described, the model has 2"):
        replace(SHAPE, layers=(LAYER,)).executor()
