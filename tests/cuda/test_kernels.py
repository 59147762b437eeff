"""The CUDA kernels of a pass against numpy in float64: odd sizes, dtypes, batches of 1 to 32."""

from typing import Any

import numpy as np
import pytest
from support.kernels import (
    BATCHES,
    DTYPES,
    NEURON_DTYPES,
    close,
    guarded,
    layer_normed,
    reglu,
    relu_table,
    rms_normed,
    some,
    stored,
    table,
)

from hotcold.native.bindings import device_kernels as kernels
from hotcold.policies.predictor.sign import pack_signs
from hotcold.runtime.predictors.predictor_forms import SignLayer

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def plugin(plugin: Any) -> Any:
    return guarded(plugin)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("rows", "d"), some([(5, 7), (96, 256), (301, 1000), (4100, 520), (37, 5120)], 0, 1)
)
def test_gemv(plugin: Any, dtype: str, batch: int, rows: int, d: int) -> None:
    rng = np.random.default_rng(rows + batch)
    raw, w = stored(rng.standard_normal((rows, d)), dtype)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    weight = (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    close(kernels.gemv(plugin, raw, dtype, x)[0], x @ w.T)
    normed, _ = kernels.gemv(plugin, raw, dtype, x, norm_D=weight)
    close(normed, rms_normed(x, weight) @ w.T)
    before = rng.standard_normal((batch, rows)).astype(np.float32)
    close(kernels.gemv(plugin, raw, dtype, x, add_to=before)[0], before + x @ w.T)
    close(kernels.gemv(plugin, raw, dtype, x, relu=True)[0], np.maximum(x @ w.T, 0))
    bias = rng.standard_normal(rows).astype(np.float32)
    close(kernels.gemv(plugin, raw, dtype, x, bias_R=bias)[0], x @ w.T + bias)
    added, _ = kernels.gemv(plugin, raw, dtype, x, bias_R=bias, add_to=before)
    close(added, before + x @ w.T + bias)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("d", some([1, 7, 1000, 7168, 9217], 1, 2))
def test_norm(plugin: Any, kind: str, batch: int, d: int) -> None:
    rng = np.random.default_rng(d + batch)
    x = (5 + 3 * rng.standard_normal((batch, d))).astype(np.float32)
    weight, bias = rng.standard_normal((2, d)).astype(np.float32)
    host = np.full_like(x, np.nan)
    if kind == "rms":
        found = kernels.norm(plugin, x, weight, kind=kind, host_BD=host)
        close(found, rms_normed(x, weight))
        np.testing.assert_array_equal(host, found)
        return
    found = kernels.norm(plugin, x, weight, bias, host_BD=host)
    close(found, layer_normed(x, weight, bias))
    np.testing.assert_array_equal(host, found)
    if d > 1:  # of a single element nothing is left without a bias
        close(kernels.norm(plugin, x, weight), layer_normed(x, weight))


@pytest.mark.parametrize("batch", [1, 5, 32])
def test_gemv_of_int8_rows_with_scales(plugin: Any, batch: int) -> None:
    rng = np.random.default_rng(batch)
    for rows, d in some([(33, 960), (5000, 64), (7, 13)], 0, 2):
        w = rng.integers(-127, 128, (rows, d)).astype(np.int8)
        scale = rng.uniform(0.001, 0.1, rows).astype(np.float32)
        x = rng.standard_normal((batch, d)).astype(np.float32)
        found, _ = kernels.gemv(plugin, w, "int8", x, scale_R=scale)
        exact = (x.astype(np.float64) @ w.T.astype(np.float64)) * scale
        close(found, exact)
        bias = rng.standard_normal(rows).astype(np.float32)
        close(kernels.gemv(plugin, w, "int8", x, scale_R=scale, bias_R=bias)[0], exact + bias)


@pytest.mark.parametrize(("rows", "d"), some([(301, 1000), (4100, 520)], 0))
def test_a_token_gets_the_same_bits_in_any_batch(plugin: Any, rows: int, d: int) -> None:
    rng = np.random.default_rng(5)
    raw, _ = stored(rng.standard_normal((rows, d)), "float16")
    x = rng.standard_normal((32, d)).astype(np.float32)
    whole, _ = kernels.gemv(plugin, raw, "float16", x)
    for size in (1, 2, 4, 8, 11):
        part, _ = kernels.gemv(plugin, raw, "float16", x[:size].copy())
        np.testing.assert_array_equal(part, whole[:size])


@pytest.mark.parametrize("dtype", NEURON_DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("rows", "d"), some([(51, 35), (700, 256), (1500, 1024), (300, 1000)], 0, 1)
)
def test_ffn(plugin: Any, dtype: str, batch: int, rows: int, d: int) -> None:
    rng = np.random.default_rng(rows * batch)
    records, parts = table(rng, rows, d, dtype)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    bounds = np.linspace(0, rows, 9).astype(np.int32)
    ids = np.flatnonzero(rng.random(rows) < 0.3).astype(np.int32)
    members = rng.integers(1, 2**batch, len(ids), dtype=np.uint64).astype(np.uint32)
    on_KB = (members[:, None] >> np.arange(batch, dtype=np.uint32)) & 1
    y, fired, _ = kernels.ffn(plugin, records, dtype, x, bounds, ids, members)
    close(y, reglu(x, parts, ids, on_KB))
    gates = np.asarray(x @ parts[0][ids].T)
    assert abs(fired - ((gates > 0) & (on_KB.T > 0)).sum()) <= (np.abs(gates) < 1e-5).sum()
    everyone = np.arange(rows)
    y, _, _ = kernels.ffn(plugin, records, dtype, x, bounds)
    close(y, reglu(x, parts, everyone, np.ones((rows, batch))))
    none, fired, _ = kernels.ffn(plugin, records, dtype, x, bounds, ids[:0], members[:0])
    assert fired == 0
    np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize("dtype", NEURON_DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("rows", "d"), some([(51, 35), (700, 256), (900, 2048), (300, 7168)], 0, 1)
)
def test_ffn_without_up_rows(plugin: Any, dtype: str, batch: int, rows: int, d: int) -> None:
    rng = np.random.default_rng(rows + batch)
    records, at, (gate, down, bias) = relu_table(rng, rows, d, dtype)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    bounds = np.linspace(0, rows, 9).astype(np.int32)
    ids = np.flatnonzero(rng.random(rows) < 0.3).astype(np.int32)
    members = rng.integers(1, 2**batch, len(ids), dtype=np.uint64).astype(np.uint32)
    on_BK = ((members[:, None] >> np.arange(batch, dtype=np.uint32)) & 1).T
    c_BN = np.maximum(x @ gate.T + bias, 0)
    kind: dict[str, Any] = {"gated": False, "bias": at}
    y, fired, _ = kernels.ffn(plugin, records, dtype, x, bounds, ids, members, **kind)
    close(y, (c_BN[:, ids] * on_BK) @ down[ids])
    unsure = (np.abs(x @ gate[ids].T + bias[ids]) < 1e-5).sum()
    assert abs(fired - ((c_BN[:, ids] > 0) & (on_BK > 0)).sum()) <= unsure
    y, _, _ = kernels.ffn(plugin, records, dtype, x, bounds, **kind)
    close(y, c_BN @ down)
    y, _, _ = kernels.ffn(plugin, records, dtype, x, bounds, gated=False)
    close(y, np.maximum(x @ gate.T, 0) @ down)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("d", some([1, 63, 64, 577, 5120, 9216], 1, 3))
def test_sign_proposes_what_the_reference_does(plugin: Any, batch: int, d: int) -> None:
    rng = np.random.default_rng(d + batch)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    x[-1, 0] = 0
    if batch > 2:
        x[1], x[2] = 0, 1e-42  # nothing to divide by, and next to nothing
    for bits in some([1, 3, 6, 8], 2):
        layer = SignLayer(
            pack_signs(rng.random((523, d)) < 0.5),
            rng.random(523, np.float32),
            rng.standard_normal(523).astype(np.float32) if bits % 2 == 0 else None,
            rng.random(d, np.float32),
            bits,
            threshold=0.0,
        )
        with np.errstate(over="ignore", invalid="ignore"):
            scores = layer.scores(x)
        for threshold in (0.0, float(np.median(scores))):
            found, _ = kernels.sign(plugin, layer, x, threshold)
            np.testing.assert_array_equal(found, scores >= np.float32(threshold))


@pytest.mark.parametrize("dtype", NEURON_DTYPES)
@pytest.mark.parametrize("d", some([512, 1000], 0))
def test_a_token_of_the_ffn_gets_the_same_bits_in_any_batch(
    plugin: Any, dtype: str, d: int
) -> None:
    rng = np.random.default_rng(1)
    records, _ = table(rng, 600, d, dtype)
    x = rng.standard_normal((32, d)).astype(np.float32)
    bounds = np.linspace(0, 600, 17).astype(np.int32)
    wanted = rng.random((600, 32)) < 0.2
    words = (wanted << np.arange(32, dtype=np.uint32)).sum(axis=1).astype(np.uint32)
    ids = np.flatnonzero(words).astype(np.int32)
    whole, _, _ = kernels.ffn(plugin, records, dtype, x, bounds, ids, words[ids])
    every, _, _ = kernels.ffn(plugin, records, dtype, x, bounds)
    for b in (0, 9, 31):
        own = np.flatnonzero(wanted[:, b]).astype(np.int32)
        members = np.ones(len(own), np.uint32)
        one = x[b : b + 1].copy()
        alone, _, _ = kernels.ffn(plugin, records, dtype, one, bounds, own, members)
        np.testing.assert_array_equal(alone[0], whole[b])
        alone, _, _ = kernels.ffn(plugin, records, dtype, one, bounds)
        np.testing.assert_array_equal(alone[0], every[b])
    few = x[3:14].copy()
    np.testing.assert_array_equal(kernels.ffn(plugin, records, dtype, few, bounds)[0], every[3:14])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n", some([1, 31, 51, 1000, 13824, 32768], 2, 3))
def test_split(plugin: Any, batch: int, n: int) -> None:
    rng = np.random.default_rng(n + batch)
    scores = rng.standard_normal((batch, n)).astype(np.float32)
    device = (rng.random(n) < 0.4).astype(np.int8)
    words = ((scores >= 1.0) << np.arange(batch, dtype=np.uint32)[:, None]).sum(axis=0)
    hot, cold = kernels.split(plugin, scores, 1.0, device)[0]
    row_of_id = np.cumsum(device == 0) - 1
    active = words.astype(np.uint32) > 0
    hot_ids = np.flatnonzero(active & (device == 0))
    cold_ids = np.flatnonzero(active & (device == 1))
    np.testing.assert_array_equal(hot[0], row_of_id[hot_ids])
    np.testing.assert_array_equal(hot[1], words[hot_ids])
    np.testing.assert_array_equal(cold[0], cold_ids)
    np.testing.assert_array_equal(cold[1], words[cold_ids])
