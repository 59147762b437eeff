"""Packed arrays: the same values, apart from what they were copied of, on cache lines."""

import numpy as np

from hotcold.runtime.weights.pages import packed


def test_packed_arrays_are_copies_on_cache_lines() -> None:
    first = np.arange(15, dtype=np.float16).reshape(3, 5)
    second = np.linspace(0, 1, 7, dtype=np.float32)
    copies = packed([first, None, second, np.zeros((0, 4), np.float32)])
    assert copies[1] is None
    assert copies[3].shape == (0, 4)
    for original, copy in ((first, copies[0]), (second, copies[2])):
        assert copy.dtype == original.dtype
        assert copy.ctypes.data % 64 == 0
        np.testing.assert_array_equal(copy, original)
    first[:] = 0
    assert copies[0][2, 4] == 14


def test_packed_arrays_outlive_the_call() -> None:
    copy = packed([np.full(1 << 20, 7, np.uint8)])[0]
    assert int(copy.sum(dtype=np.int64)) == 7 << 20


def test_nothing_to_pack() -> None:
    assert packed([]) == []
    assert packed([None, None]) == [None, None]
