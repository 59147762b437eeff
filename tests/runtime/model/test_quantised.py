import numpy as np
import pytest

from hotcold.native.abi.formats import FORMATS
from hotcold.runtime.model.checkpoints.quantised import STORED

INT8 = FORMATS["int8"]


@pytest.mark.parametrize("d", [1, 16, 63, 64, 65, 200])
def test_int8_is_half_a_step_off_at_most(d: int) -> None:
    rng = np.random.default_rng(d)
    rows = (rng.standard_normal((50, d)) * 10.0 ** rng.integers(-9, 4, (50, 1))).astype(np.float32)
    raw = STORED["int8"].pack(rows, "float32")
    assert raw.shape == (50, INT8.part_bytes(d)) and raw.shape[1] % 16 == 0
    back = STORED["int8"].unpack(raw, d)
    for begin in range(0, d, 64):
        group = slice(begin, begin + 64)
        largest = np.abs(rows[:, group]).max(axis=1, keepdims=True)
        # A float16 scale is 2^-11 off, or, where it is small, 2^-24.
        step = largest / 127 * (1 + 2.0**-10) + 2.0**-24
        assert (np.abs(back[:, group] - rows[:, group]) <= 0.5 * step * (1 + 1e-3)).all()


def test_int8_padding_and_empty_groups_are_zero() -> None:
    raw = STORED["int8"].pack(np.zeros((3, 70), np.float32), "float32")
    assert not raw.any() and not STORED["int8"].unpack(raw, 70).any()
    raw = STORED["int8"].pack(np.full((3, 70), -2.0, np.float32), "float32")
    assert not raw[:, 70:80].any() and not raw[:, 84:].any()
    assert (raw[:, :70].view(np.int8) == -127).all()


def test_weights_beyond_the_scales_are_refused() -> None:
    with pytest.raises(OverflowError, match="1e\\+08 is beyond int8's"):
        STORED["int8"].pack(np.array([[1e8]], np.float32), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_float_formats_keep_their_bits(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    stored = STORED[dtype]
    once = stored.unpack(stored.pack(values, "float32"), 9)
    np.testing.assert_array_equal(stored.unpack(stored.pack(once, "float32"), 9), once)
    assert stored.pack(values, "float32").shape == (4, FORMATS[dtype].part_bytes(9))
