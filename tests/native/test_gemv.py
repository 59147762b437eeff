import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weights import DTYPES, VARIANTS, close_dot, float64, forced, random_weights

from hotcold.native.bindings import kernels
from hotcold.native.errors import ConfigError

SIZES = [1, 3, 7, 8, 15, 16, 24, 31, 65, 320, 513, 1040]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_matches_float64(variant: str, dtype: str, d: int) -> None:
    rng = np.random.default_rng(d)
    for rows, batch in ((1, 1), (5, 1), (37, 1), (6, 2), (5, 3), (33, 5), (4, 32)):
        w = random_weights(rng, (rows, d), dtype)
        x = rng.standard_normal((batch, d)).astype(np.float32)
        with forced(variant):
            y = kernels.gemv(w, x)
        close_dot(y, x.astype(np.float64) @ float64(w).T, np.abs(x) @ np.abs(float64(w)).T)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [7, 65, 320, 1040])
def test_token_and_row_do_not_depend_on_company(variant: str, dtype: str, d: int) -> None:
    rng = np.random.default_rng(1)
    w = random_weights(rng, (45, d), dtype)
    x = rng.standard_normal((32, d)).astype(np.float32)
    with forced(variant), kernels.Pool(3) as pool:
        alone = np.concatenate([kernels.gemv(w, x[b : b + 1]) for b in range(32)])
        for batch in range(2, 33):
            np.testing.assert_array_equal(kernels.gemv(w, x[:batch]), alone[:batch])
        np.testing.assert_array_equal(kernels.gemv(w, x, pool=pool), alone)
        for row in range(0, 45, 7):
            np.testing.assert_array_equal(
                kernels.gemv(w[row : row + 1], x), alone[:, row : row + 1]
            )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_matter(threads: int) -> None:
    rng = np.random.default_rng(2)
    w = random_weights(rng, (2000, 320), "float16")
    x = rng.standard_normal((1, 320)).astype(np.float32)
    with kernels.Pool(threads) as pool:
        for _ in range(20):
            np.testing.assert_array_equal(kernels.gemv(w, x, pool=pool), kernels.gemv(w, x))


def test_bias_relu_accumulate_and_strides() -> None:
    rng = np.random.default_rng(3)
    wide = random_weights(rng, (20, 96), "float16")
    w, x = wide[:, 32:64], rng.standard_normal((4, 32)).astype(np.float32)
    bias = rng.standard_normal(20).astype(np.float32)
    plain = kernels.gemv(w, x)
    np.testing.assert_array_equal(plain, kernels.gemv(np.ascontiguousarray(w), x))
    np.testing.assert_array_equal(kernels.gemv(w, x, bias_R=bias), plain + bias)
    np.testing.assert_array_equal(
        kernels.gemv(w, x, bias_R=bias, relu=True), np.maximum(plain + bias, 0)
    )
    start = rng.standard_normal((4, 20)).astype(np.float32)
    added = kernels.gemv(w, x, add_to=start.copy())
    np.testing.assert_array_equal(added, start + plain)


def test_nan_is_not_hidden_by_relu() -> None:
    w, x = np.ones((2, 3), np.float32), np.full((1, 3), np.nan, np.float32)
    assert np.isnan(kernels.gemv(w, x, relu=True)).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    d=st.integers(1, 200),
    batch=st.integers(1, 32),
    dtype=st.sampled_from(DTYPES),
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 99),
)
def test_any_shape(rows: int, d: int, batch: int, dtype: str, variant: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = random_weights(rng, (rows, d), dtype)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    with forced(variant):
        y = kernels.gemv(w, x)
    close_dot(y, x.astype(np.float64) @ float64(w).T, np.abs(x) @ np.abs(float64(w)).T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_half_is_converted_exactly(variant: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    one = np.ones((1, 1), np.float32)
    for w, exact in (
        (bits.view(np.float16), bits.view(np.float16).astype(np.float32)),
        (bits, (bits.astype(np.uint32) << 16).view(np.float32)),
    ):
        finite = np.isfinite(exact)
        with forced(variant):
            y = kernels.gemv(w.reshape(-1, 1), one)[0]
        np.testing.assert_array_equal(y[finite], exact[finite])
        np.testing.assert_array_equal(np.isnan(y[~finite]), np.isnan(exact[~finite]))
        inf = np.isinf(exact)
        np.testing.assert_array_equal(y[inf], exact[inf])


def test_refuses_what_does_not_fit() -> None:
    w, x = np.ones((4, 8), np.float32), np.ones((1, 8), np.float32)
    with pytest.raises(ConfigError, match="batch 33"):
        kernels.gemv(w, np.ones((33, 8), np.float32))
    with pytest.raises(ConfigError, match="batch 0"):
        kernels.gemv(w, np.ones((0, 8), np.float32))
    with pytest.raises(ConfigError, match="8 are needed"):
        kernels.gemv(w, np.ones((1, 7), np.float32))
    with pytest.raises(ConfigError, match="float64"):
        kernels.gemv(w.astype(np.float64), x)
    with pytest.raises(ConfigError, match="exclude"):
        kernels.gemv(w, x, relu=True, add_to=np.zeros((1, 4), np.float32))
    with pytest.raises(ConfigError, match="contiguous rows"):
        kernels.gemv(np.ones((4, 0), np.float32), np.ones((1, 0), np.float32))
