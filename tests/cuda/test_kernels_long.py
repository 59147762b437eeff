"""The CUDA kernels of a pass on rows as long as those of real models, and their bits in any batch.

Which kernel serves a product of one token, and how many packs a thread holds, follows from the
length and the number of rows: every such choice is made here, against numpy in float64 and against
the kernel for batches.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import close, guarded, reglu, rms_normed, some, stored, table

from hotcold.native.bindings import device_kernels as kernels

pytestmark = pytest.mark.gpu

ROWS = 1201  # more than eight a multiprocessor: several rows at once; fewer: one
PACKS = {"float16": 8, "bfloat16": 8, "int8": 16}
LONG = some([2048, 3072, 4096, 5120, 7168], 0, 3)  # 2, 3, 4, 5, 7 packs a thread, int8 half of it


@pytest.fixture(scope="module")
def plugin(plugin: Any) -> Any:
    return guarded(plugin)


@lru_cache(maxsize=1)
def values(d: int) -> NDArray[np.float32]:
    return np.random.default_rng(d).standard_normal((ROWS, d), np.float32)


def weights(dtype: str, d: int) -> tuple[NDArray[Any], NDArray[np.float64], dict[str, Any]]:
    """Rows as stored, what they are, and the scales that belong to them."""
    if dtype != "int8":
        raw, exact = stored(values(d), dtype)
        return raw, exact, {}
    raw = np.clip(np.rint(values(d) * 40), -127, 127).astype(np.int8)
    scale = np.random.default_rng(1).uniform(0.01, 0.1, ROWS).astype(np.float32)
    return raw, raw.astype(np.float64) * scale[:, None], {"scale_R": scale}


@pytest.mark.parametrize("d", LONG)
@pytest.mark.parametrize("dtype", some(list(PACKS), 0, 2))
def test_gemv_of_one_token(plugin: Any, dtype: str, d: int) -> None:
    rng = np.random.default_rng(d)
    raw, w, scales = weights(dtype, d)
    x = rng.standard_normal((1, d)).astype(np.float32)
    weight = (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    before, bias = rng.standard_normal((2, ROWS)).astype(np.float32)
    exact, normed = (x @ w.T)[0], (rms_normed(x, weight) @ w.T)[0]
    for rows in (ROWS, 37):
        own = {name: scale[:rows].copy() for name, scale in scales.items()}

        def found(rows: int = rows, own: dict[str, Any] = own, **how: Any) -> NDArray[np.float32]:
            return kernels.gemv(plugin, raw[:rows], dtype, x, **own, **how)[0][0]

        close(found(), exact[:rows])
        close(found(relu=True), np.maximum(exact[:rows], 0))
        close(found(norm_D=weight), normed[:rows])
        sum_ = found(add_to=before[None, :rows], bias_R=bias[:rows].copy())
        close(sum_, (exact + before + bias)[:rows])


@pytest.mark.parametrize("d", LONG)
@pytest.mark.parametrize("dtype", some(list(PACKS), 0, 2))
def test_gemv_gives_a_token_the_same_bits_in_any_batch(plugin: Any, dtype: str, d: int) -> None:
    """The product, and the normed x that goes with it to the device's and the host's neurons."""
    rng = np.random.default_rng(d + 1)
    raw, _, scales = weights(dtype, d)
    x = rng.standard_normal((32, d)).astype(np.float32)
    weight = (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    bias = rng.standard_normal(ROWS).astype(np.float32)
    plain, _ = kernels.gemv(plugin, raw, dtype, x, bias_R=bias, **scales)
    copies = np.full((2, 32, d), np.nan, np.float32)
    whole, _ = kernels.gemv(plugin, raw, dtype, x, norm_D=weight, normed_2BD=copies, **scales)
    np.testing.assert_array_equal(copies[0], copies[1])
    close(copies[0], rms_normed(x, weight))
    for tokens in (slice(0, 1), slice(31, 32), slice(2, 4), slice(5, 8), slice(3, 14)):
        own = x[tokens].copy()
        found, _ = kernels.gemv(plugin, raw, dtype, own, bias_R=bias, **scales)
        np.testing.assert_array_equal(found, plain[tokens])
        part = np.full((2, len(own), d), np.nan, np.float32)
        found, _ = kernels.gemv(plugin, raw, dtype, own, norm_D=weight, normed_2BD=part, **scales)
        np.testing.assert_array_equal(found, whole[tokens])
        np.testing.assert_array_equal(part, copies[:, tokens])


@pytest.mark.parametrize("d", some([7, 320, 1000, 1024, 5120, 7170], 1))
def test_a_normed_row_has_one_order_in_every_kernel(plugin: Any, d: int) -> None:
    rng = np.random.default_rng(d)
    x = (1 + rng.standard_normal((32, d))).astype(np.float32)
    weight = rng.standard_normal(d).astype(np.float32)
    alone = kernels.norm(plugin, x, weight, kind="rms")
    for dtype in ("float32", "float16", "int8"):
        w = np.ones((3, d), dtype)
        scales = {"scale_R": np.ones(3, np.float32)} if dtype == "int8" else {}
        for batch in (1, 2, 3, 8, 32):
            copies = np.full((2, batch, d), np.nan, np.float32)
            own = x[:batch].copy()
            kernels.gemv(plugin, w, dtype, own, norm_D=weight, normed_2BD=copies, **scales)
            np.testing.assert_array_equal(copies, np.stack([alone[:batch]] * 2))


@pytest.mark.parametrize("batch", some([1, 2, 3, 8, 32], 0, 2))
@pytest.mark.parametrize("dtype", some(["float32", "float16", "bfloat16", "int8"], 1, 3))
def test_members_are_the_tokens_that_reach_the_threshold(
    plugin: Any, dtype: str, batch: int
) -> None:
    """Whole numbers, so that the product is exact and the threshold itself is reached."""
    rng = np.random.default_rng(batch)
    for rows, d in some([(5, 7), (37, 1000), (1201, 960), (1201, 3072)], 1, 2):
        w = rng.integers(-3, 4, (rows, d)).astype(np.float32)
        x = rng.integers(-2, 3, (batch, d)).astype(np.float32)
        bias = rng.integers(-9, 10, rows).astype(np.float32)
        raw = w.astype(np.int8) if dtype == "int8" else stored(w, dtype)[0]
        scale = 2.0 ** rng.integers(-2, 3, rows).astype(np.float32) if dtype == "int8" else None
        scores = (x @ w.T) * (1 if scale is None else scale) + bias
        threshold = float(np.median(scores))
        found = kernels.members(plugin, raw, dtype, x, threshold, scale_R=scale, bias_R=bias)
        np.testing.assert_array_equal(found, scores >= threshold)
        assert 0 < found.mean() < 1


@pytest.mark.parametrize("dtype", some(["float32", "float16", "bfloat16", "int8"], 1))
@pytest.mark.parametrize(("rows", "d"), some([(1201, 3072), (37, 1000), (37, 7)], 1))
def test_logits_are_computed_where_they_are_asked_for(
    plugin: Any, dtype: str, rows: int, d: int
) -> None:
    rng = np.random.default_rng(d)
    raw = stored(rng.integers(-9, 10, (rows, d)), dtype)[0]
    x = rng.standard_normal((5, d)).astype(np.float32)
    weight = rng.standard_normal(d).astype(np.float32)
    extra = {"scale_R": rng.standard_normal(rows).astype(np.float32)} if dtype == "int8" else {}

    def found(x: NDArray[Any], **how: Any) -> NDArray[np.float32]:
        return kernels.gemv(plugin, raw, dtype, x, norm_D=weight, **extra, **how)[0]

    whole = found(x)
    np.testing.assert_array_equal(found(x, when=("all rows", 5)), whole)
    np.testing.assert_array_equal(found(x, when=("one row", 1))[0], whole[-1])
    for when in (("all rows", 1), ("one row", 5), ("one row", 0)):
        np.testing.assert_array_equal(found(x, when=when), 0)
    np.testing.assert_array_equal(found(x[:1].copy(), when=("one row", 1)), whole[:1])
    np.testing.assert_array_equal(found(x[:1].copy(), when=("all rows", 1)), 0)


@pytest.mark.parametrize(
    ("dtype", "d"),
    some(
        [(dtype, d) for dtype in ("float16", "bfloat16") for d in (2048, 4096, 5120, 7168)]
        + [("float32", d) for d in (2048, 2560, 3072, 3584)]
        + [("int8", d) for d in (1024, 4096, 5120, 8192, 9216, 12288)],
        0,
        2,
        14,
    ),
)
def test_neurons_of_one_token(plugin: Any, dtype: str, d: int) -> None:
    """Gate and up rows of 2, 4, 5 and 7 packs a thread, and of 6, for which there is no kernel.

    Of int8, with packs twice as long, 1 to 5.
    """
    rng, rows = np.random.default_rng(d), 300
    records, parts = table(rng, rows, d, dtype)
    x = rng.standard_normal((32, d)).astype(np.float32)
    bounds = np.linspace(0, rows, 9).astype(np.int32)
    wanted = rng.random((rows, 32)) < 0.3
    words = (wanted << np.arange(32, dtype=np.uint32)).sum(axis=1).astype(np.uint32)
    ids = np.flatnonzero(words).astype(np.int32)
    whole, _, _ = kernels.ffn(plugin, records, dtype, x, bounds, ids, words[ids])
    close(whole, reglu(x, parts, np.arange(rows), wanted))
    for b in (0, 9, 31):
        own = np.flatnonzero(wanted[:, b]).astype(np.int32)
        one, on = x[b : b + 1].copy(), np.ones(len(own), np.uint32)
        alone, fired, _ = kernels.ffn(plugin, records, dtype, one, bounds, own, on)
        np.testing.assert_array_equal(alone[0], whole[b])
        gates = (one @ parts[0][own].T)[0]
        assert abs(fired - (gates > 0).sum()) <= (np.abs(gates) < 1e-5).sum()
