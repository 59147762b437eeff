"""What C itself refuses: the executors fill these structs without the Python wrappers."""

from typing import Any

import numpy as np
import pytest

from hotcold.native._kernels import ffi, lib
from hotcold.native.abi.generated import active_bytes
from hotcold.native.bindings._arrays import ffn_scratch
from hotcold.native.bindings._ffi import check, pointer
from hotcold.native.errors import ConfigError

ROOM = np.zeros(4096, np.float32)


def address(kind: str) -> Any:
    return ffi.cast(kind, ROOM.ctypes.data)


def gemv_args() -> Any:
    args = ffi.new("hc_gemv_args *")
    args.w, args.stride_bytes, args.rows, args.d = address("void *"), 32, 4, 8
    args.dtype, args.batch = 0, 2
    args.x_BD, args.x_stride = address("float *"), 8
    args.y_BR, args.y_stride = address("float *"), 4
    return args


@pytest.mark.parametrize(
    "field,value,word",
    [
        ("w", ffi.NULL, "must be given"),
        ("dtype", 3, "dtype 3"),
        ("dtype", -1, "dtype -1"),
        ("batch", 33, "batch 33"),
        ("d", 0, "rows of 0"),
        ("d", 1 << 40, "rows of"),
        ("rows", -1, "-1 rows"),
        ("stride_bytes", 31, "31 bytes apart"),
        ("stride_bytes", 33, "33 bytes apart"),
        ("x_stride", 7, "strides 7"),
        ("y_stride", 3, "3 of y"),
        ("scales", 8, "scales 8 bytes behind rows of 8 in dtype 0"),
        ("dtype", 3, "scales 0 bytes behind rows of 8 in dtype 3"),
        ("bias_stride", 6, "biases 6 bytes apart"),
        ("bias_stride", -4, "biases -4 bytes apart"),
    ],
)
def test_gemv(field: str, value: Any, word: str) -> None:
    check(lib.hc_gemv(gemv_args(), ffi.NULL))
    args = gemv_args()
    setattr(args, field, value)
    with pytest.raises(ConfigError, match=word):
        check(lib.hc_gemv(args, ffi.NULL))


def ffn_args(keep: list[Any]) -> Any:
    args = ffi.new("hc_ffn_args *")
    ids, scratch = ffi.new("int32_t[]", [0, 1]), ffn_scratch(2, 1)
    keep += [ids, scratch]
    args.records, args.record.bytes = address("void *"), 96
    args.record.up, args.record.down, args.d, args.batch = 32, 64, 8, 1
    args.ids, args.n_ids, args.n = ids, 2, 2
    args.x_BD, args.y_BD = (address("float *") + 1024 * i for i in (1, 2))
    args.scratch = pointer(scratch, "void *")
    return args


@pytest.mark.parametrize(
    "field,value,word",
    [
        ("records", ffi.NULL, "without records"),
        ("ids", ffi.NULL, "without a list"),
        ("n_ids", -1, "-1 ids"),
        ("scratch", ffi.NULL, "must be given"),
        ("n", 1, "ids 0 to 1; the layer has 1"),
        ("record.dtype", 9, "dtype 9"),
        ("batch", 0, "batch 0"),
        ("d", 0, "d 0"),
        ("record.down", 65, "byte 65"),
        ("record.up", -32, "byte -32"),
        ("record.bytes", 92, "92 bytes"),
        ("record.dtype", 3, "scales of 0 weights at byte 0, dtype 3"),
        ("record.group", 64, "scales of 64 weights"),
        ("record.scales", 32, "scales of 0 weights at byte 32"),
        ("record.bias", -4, "bias at byte -4"),
        ("record.bias", 94, "bias at byte 94"),
        ("record.bias", 96, "bias at byte 96"),
    ],
)
def test_ffn(field: str, value: Any, word: str) -> None:
    keep: list[Any] = []
    check(lib.hc_ffn(ffn_args(keep), ffi.NULL))
    args = ffn_args(keep)
    *inside, name = field.split(".")
    setattr(args.record if inside else args, name, value)
    with pytest.raises(ConfigError, match=word):
        check(lib.hc_ffn(args, ffi.NULL))


@pytest.mark.parametrize(
    "field,value,word",
    [
        ("scales", 0, "at byte 0"),
        ("scales", 6, "at byte 6"),
        ("scales", 17, "at byte 17"),
        ("scales", 32, "a row at byte 64"),
        ("group", 32, "scales of 32 weights"),
        ("down", 79, "a row at byte 79"),
        ("up", -16, "a row at byte -16"),
    ],
)
def test_ffn_in_int8(field: str, value: Any, word: str) -> None:
    """Parts of 8 weights, 16 bytes to the scales, 32 in all."""
    keep: list[Any] = []
    args = ffn_args(keep)
    args.record.dtype, args.record.scales, args.record.group = 3, 16, 64
    check(lib.hc_ffn(args, ffi.NULL))
    setattr(args.record, field, value)
    with pytest.raises(ConfigError, match=word):
        check(lib.hc_ffn(args, ffi.NULL))


def test_null_arguments_and_lists() -> None:
    none = ffi.NULL
    for status in (
        lib.hc_gemv(none, none),
        lib.hc_ffn(none, none),
        lib.hc_split(none),
        lib.hc_norm_rows(0, none, none, none, 0.0, none, 1, 1),
        lib.hc_norm_rows(1, none, none, none, 0.0, none, 1, 1),
        lib.hc_rotary(none, 0, 1, 2, none, none, none, 1),
        lib.hc_attention(none, none),
        lib.hc_sample(none),
    ):
        assert status == lib.HC_ERR_ARGUMENT
    lib.hc_pool_destroy(none)
    assert lib.hc_pool_threads(none) == 1


def test_split_refuses_a_short_or_missing_list() -> None:
    buffer = np.zeros(active_bytes(3, 0), np.uint8)
    one = ffi.cast("hc_active *", buffer.ctypes.data)
    device = ffi.new("int8_t[]", [0, 0, 1, 1])
    args = ffi.new("hc_split_args *")
    args.scores_BN, args.n, args.batch, args.device_N = address("float *"), 4, 1, device
    args.out[0] = one
    one.capacity = 3
    with pytest.raises(ConfigError, match="room for 3 of 4"):
        check(lib.hc_split(args))
    args.n = 3
    with pytest.raises(ConfigError, match="device 1, which has no list"):
        check(lib.hc_split(args))
