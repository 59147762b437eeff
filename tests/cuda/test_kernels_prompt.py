"""The CUDA kernels of dense prompts against numpy in float64, and a token's bits in any company.

Tolerances: activations travel as two halves of the weights' type, 22 bits in float16 and 16 in
bfloat16, and tensor cores cut a sum off where they add 16 products to it, towards zero.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import (
    DTYPES,
    SMALL,
    close,
    guarded,
    layer_normed,
    relu_table,
    rms_normed,
    some,
    stored,
    table,
)

from hotcold.native.bindings import device_prompt_kernels as kernels
from hotcold.native.bindings.device_kernels import norm, sign
from hotcold.policies.predictor.sign import pack_signs
from hotcold.runtime.predictors.predictor_forms import SignLayer

pytestmark = pytest.mark.gpu

HALVES = {"float32": 0.0, "float16": 2.0**-22, "bfloat16": 2.0**-16, "int8": 2.0**-22}


@pytest.fixture(scope="module")
def plugin(plugin: Any) -> Any:
    return guarded(plugin)


def tolerance(dtype: str, k: int) -> float:
    """Of a product of depth k, relative to its norm."""
    return 4e-6 + HALVES[dtype] + 2 * k / 16 * 2.0**-24


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "rows", "k"),
    some(
        [
            (1, 5, 7),
            (70, 130, 64),
            (33, 51, 35),
            (129, 200, 1000),
            (33, 1201, 5120),
            (9, 13824, 640),
        ],
        1,
        2,
    ),
)
def test_product(plugin: Any, dtype: str, tokens: int, rows: int, k: int) -> None:
    rng = np.random.default_rng(tokens + rows)
    raw, w = stored(rng.standard_normal((rows, k), np.float32), dtype)
    x = rng.standard_normal((tokens, k)).astype(np.float32)
    weight = (1 + 0.1 * rng.standard_normal(k)).astype(np.float32)
    before = rng.standard_normal((tokens, rows)).astype(np.float32)
    near, exact = tolerance(dtype, k), x @ w.T
    whole, fired = kernels.product(plugin, raw, dtype, x)
    close(whole, exact, near)
    assert fired == 0
    close(kernels.product(plugin, raw, dtype, x, relu=True)[0], np.maximum(exact, 0), near)
    close(kernels.product(plugin, raw, dtype, x, add_to=before)[0], before + exact, near)
    normed, _ = kernels.product(plugin, raw, dtype, x, norm_D=weight)
    close(normed, rms_normed(x, weight) @ w.T, near)
    bias = rng.standard_normal(k).astype(np.float32)
    shifted: dict[str, Any] = {"norm_D": weight, "norm_bias_D": bias, "kind": "layer"}
    normed, _ = kernels.product(plugin, raw, dtype, 5 + x, **shifted)
    close(normed, layer_normed(5 + x, weight, bias) @ w.T, 2 * near)
    for own in (slice(0, 1), slice(tokens // 2, tokens)):
        part, _ = kernels.product(plugin, raw, dtype, x[own].copy())
        np.testing.assert_array_equal(part, whole[own])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_of_any_magnitude_is_as_exact(plugin: Any, dtype: str) -> None:
    """Every token has a scale of its own; half precision alone would be infinite or 0."""
    rng = np.random.default_rng(0)
    raw, w = stored(rng.standard_normal((150, 512)), dtype)
    x = rng.standard_normal((7, 512)) * np.array([1e30, 1e5, 1, 1e-5, 1e-30, 0, 1])[:, None]
    x[6, ::2] *= 1e4  # the small ones are of no weight beside the large ones
    x = x.astype(np.float32)
    found, _ = kernels.product(plugin, raw, dtype, x)
    for token, exact in zip(found, x.astype(np.float64) @ w.T, strict=True):
        close(token, exact, tolerance(dtype, 512))


@pytest.mark.parametrize(("tokens", "rows", "k"), some([(5, 7, 13), (40, 300, 512)], 0))
def test_product_of_int8_rows_with_scales(plugin: Any, tokens: int, rows: int, k: int) -> None:
    rng = np.random.default_rng(k)
    w = rng.integers(-127, 128, (rows, k)).astype(np.int8)
    scale = rng.uniform(0.001, 0.1, rows).astype(np.float32)
    x = rng.standard_normal((tokens, k)).astype(np.float32)
    found, _ = kernels.product(plugin, w, "int8", x, scale_R=scale)
    close(found, (x.astype(np.float64) @ w.T.astype(np.float64)) * scale, tolerance("int8", k))


@pytest.mark.parametrize("dtype", [*DTYPES, "int8"])
@pytest.mark.parametrize(("tokens", "rows", "k"), some([(5, 9, 13), (70, 203, 512)], 1))
def test_proposals_reach_the_threshold(
    plugin: Any, dtype: str, tokens: int, rows: int, k: int
) -> None:
    """Whole numbers, so that the product is exact and the threshold itself is reached."""
    rng = np.random.default_rng(k)
    raw, w = stored(rng.integers(-3, 4, (rows, k)).astype(np.float32), dtype)
    x = rng.integers(-2, 3, (tokens, k)).astype(np.float32)
    bias = rng.integers(-9, 10, rows).astype(np.float32)
    scale = 2.0 ** rng.integers(-2, 3, rows).astype(np.float32) if dtype == "int8" else None
    scores = (x @ w.T) * (1 if scale is None else scale) + bias
    threshold = float(np.median(scores))
    found = kernels.proposals(plugin, raw, dtype, x, threshold, scale_R=scale, bias_R=bias)
    np.testing.assert_array_equal(found, scores >= threshold)
    assert 0 < found.mean() < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "rows", "d"),
    some([(7, 51, 35), (70, 130, 64), (33, 1500, 512), (9, 4096, 520)], 0, 1),
)
def test_neurons(plugin: Any, dtype: str, tokens: int, rows: int, d: int) -> None:
    """Gate and up rows of records in one product, then the down columns of the same records."""
    rng = np.random.default_rng(rows)
    records, (gate, up, down) = table(rng, rows, d, dtype)
    size = 4 if dtype == "float32" else 2
    x = rng.standard_normal((tokens, d)).astype(np.float32)
    ids = rng.permutation(rows + 11)[:rows].astype(np.int32)  # of the layer's neurons, in any order
    mask = rng.random((tokens, rows + 11)) < 0.4
    near = tolerance(dtype, d)
    gates = x @ gate.T
    for on in (None, mask):
        how = kernels.Neurons(d * size, 0, on, None if on is None else ids)
        c, fired = kernels.product(plugin, records, dtype, x, neurons=how)
        expected = np.maximum(gates, 0) * (x @ up.T) * (1 if on is None else on[:, ids])
        close(c, expected, near)
        assert abs(fired - (expected != 0).sum()) <= (np.abs(gates) < 1e-4).sum()
        before = rng.standard_normal((tokens, d)).astype(np.float32)
        y, _ = kernels.product(
            plugin, records, dtype, c, rows=d, offset=2 * d * size, add_to=before
        )
        close(y, before + c.astype(np.float64) @ down, tolerance(dtype, rows))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "rows", "d"), some([(7, 51, 35), (70, 130, 64), (33, 1500, 512)], 0, 1)
)
def test_plain_neurons(plugin: Any, dtype: str, tokens: int, rows: int, d: int) -> None:
    """Without up rows, with and without a bias."""
    rng = np.random.default_rng(rows)
    records, at, (gate, down, bias) = relu_table(rng, rows, d, dtype)
    size = 4 if dtype == "float32" else 2
    x = rng.standard_normal((tokens, d)).astype(np.float32)
    ids = rng.permutation(rows + 3)[:rows].astype(np.int32)
    mask = rng.random((tokens, rows + 3)) < 0.4
    for bias_bytes in (0, at):
        gates = x @ gate.T + (bias if bias_bytes else 0)
        how = kernels.Neurons(None, bias_bytes, mask, ids)
        c, fired = kernels.product(plugin, records, dtype, x, neurons=how)
        expected = np.maximum(gates, 0) * mask[:, ids]
        close(c, expected, tolerance(dtype, d))
        assert abs(fired - (expected != 0).sum()) <= (np.abs(gates) < 1e-4).sum()
        y, _ = kernels.product(plugin, records, dtype, c, rows=d, offset=d * size)
        close(y, c.astype(np.float64) @ down, tolerance(dtype, rows))


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("d", some([7, 1000, 7168], 1))
def test_norm(plugin: Any, kind: str, d: int) -> None:
    rng = np.random.default_rng(d)
    x = (5 + 3 * rng.standard_normal((70, d))).astype(np.float32)
    weight, bias = rng.standard_normal((2, d)).astype(np.float32)
    if kind == "rms":
        close(norm(plugin, x, weight, kind=kind, prompt=True), rms_normed(x, weight))
    else:
        found = norm(plugin, x, weight, bias, prompt=True)
        close(found, layer_normed(x, weight, bias))


@pytest.mark.parametrize("tokens", some([1, 33, 100], 1))
@pytest.mark.parametrize("d", some([1, 63, 577, 5120], 1, 2))
def test_sign_proposes_what_the_reference_does(plugin: Any, tokens: int, d: int) -> None:
    rng = np.random.default_rng(d + tokens)
    x = rng.standard_normal((tokens, d)).astype(np.float32)
    x[-1, 0] = 0
    if tokens > 2:
        x[1] = 0  # nothing to divide by
    for bits in (1, 3, 8):
        layer = SignLayer(
            pack_signs(rng.random((203, d)) < 0.5),
            rng.random(203, np.float32),
            rng.standard_normal(203).astype(np.float32) if bits == 8 else None,
            rng.random(d, np.float32),
            bits,
            threshold=0.0,
        )
        scores = layer.scores(x)
        for threshold in (0.0, float(np.median(scores))):
            found, _ = sign(plugin, layer, x, threshold, prompt=True)
            np.testing.assert_array_equal(found, scores >= np.float32(threshold))


@pytest.mark.parametrize("dtype", some(["float16", "bfloat16"], 0))
def test_down_columns_of_a_whole_layer(plugin: Any, dtype: str) -> None:
    rng = np.random.default_rng(4)
    k, rows = (320 if SMALL else 13824), 512
    raw, w = stored(rng.standard_normal((k, rows), np.float32), dtype)
    x = rng.standard_normal((33, k)).astype(np.float32)
    x *= rng.random(x.shape) < 0.2  # most neurons do not fire
    found, _ = kernels.product(plugin, raw, dtype, x, rows=rows)
    close(found, x @ w, tolerance(dtype, k))


@pytest.mark.parametrize("kv", ["float32", "float16"])
@pytest.mark.parametrize("tokens", some([1, 16, 45, 100], 2))
@pytest.mark.parametrize("shape", some([(5, 1, 6), (4, 4, 64), (8, 2, 128), (2, 1, 256)], 0, 2))
@pytest.mark.parametrize("before", some([0, 37], 1))
@pytest.mark.parametrize("window", some([0, 1, 20, 70], 0, 2))
def test_attention(
    plugin: Any, kv: str, tokens: int, shape: tuple[int, int, int], before: int, window: int
) -> None:
    heads, kv_heads, hd = shape
    rng = np.random.default_rng(before + hd + tokens)
    context, half = before + tokens + 3, hd // 2
    qkv = rng.standard_normal((tokens, (heads + 2 * kv_heads) * hd)).astype(np.float32)
    caches = [np.zeros((kv_heads, context, hd), kv) for _ in range(2)]
    for cache in caches:
        cache[:, :before] = rng.standard_normal((kv_heads, before, hd))
    angles = rng.uniform(0, 6, (context, half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    here = slice(before, before + tokens)

    def turn(x: Any) -> NDArray[np.float64]:
        c, s = cos[here, None].astype(float), sin[here, None].astype(float)
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * c - high * s, high * c + low * s], axis=-1)

    parts = qkv.astype(np.float64).reshape(tokens, -1, hd)
    q, k, v = np.split(parts, [heads, heads + kv_heads], axis=1)
    keys, values = (cache.astype(np.float64) for cache in caches)
    keys[:, here], values[:, here] = turn(k).transpose(1, 0, 2), v.transpose(1, 0, 2)
    out = kernels.attention(plugin, qkv, *caches, heads, before, cos, sin, window)
    close(caches[0], keys, 1e-5 if kv == "float32" else 1e-3)
    np.testing.assert_array_equal(caches[1], values.astype(kv))
    keys, values = (cache.astype(np.float64) for cache in caches)  # as rounded
    turned, expected = turn(q), np.zeros((tokens, heads, hd))
    for t in range(tokens):
        for head in range(heads):
            n, at = before + t + 1, head // (heads // kv_heads)
            seen = slice(max(0, n - window) if window else 0, n)
            scores = keys[at, seen] @ turned[t, head] / np.sqrt(hd)
            p = np.exp(scores - scores.max())
            expected[t, head] = p / p.sum() @ values[at, seen]
    close(out, expected.reshape(tokens, -1))
    if tokens == 1:
        return
    again = [cache.copy() for cache in caches]
    for cache in again:
        cache[:, here] = 0
    first = tokens // 3 + 1
    for own in (slice(0, first), slice(first, tokens)):
        part = kernels.attention(
            plugin, qkv[own].copy(), *again, heads, before + own.start, cos, sin, window
        )
        np.testing.assert_array_equal(part, out[own])
