from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.weights import VARIANTS, forced

from hotcold.native.abi.generated import MAX_DEVICES
from hotcold.native.bindings import kernels
from hotcold.native.errors import ConfigError


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("d", [1, 3, 7, 65, 320])
def test_rmsnorm_matches_float64_in_any_batch(variant: str, d: int) -> None:
    rng = np.random.default_rng(d)
    x = (rng.standard_normal((32, d)) * 10).astype(np.float32)
    weight = rng.standard_normal(d).astype(np.float32)
    x64 = x.astype(np.float64)
    exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    with forced(variant):
        y = kernels.rmsnorm(x, weight, 1e-5)
        np.testing.assert_allclose(y, exact, rtol=3e-6, atol=1e-6)
        for b in (0, 31):
            np.testing.assert_array_equal(kernels.rmsnorm(x[b : b + 1], weight, 1e-5)[0], y[b])


def test_rmsnorm_refuses() -> None:
    x, weight = np.ones((1, 4), np.float32), np.ones(4, np.float32)
    with pytest.raises(ConfigError, match="batch 33"):
        kernels.rmsnorm(np.ones((33, 4), np.float32), weight, 1e-5)
    with pytest.raises(ConfigError, match="eps nan"):
        kernels.rmsnorm(x, weight, float("nan"))
    with pytest.raises(ConfigError, match="4 are needed"):
        kernels.rmsnorm(x, np.ones(5, np.float32), 1e-5)


@pytest.mark.parametrize("heads,head_dim", [(1, 2), (3, 6), (5, 64)])
def test_rotary_turns_pairs(heads: int, head_dim: int) -> None:
    rng = np.random.default_rng(heads)
    half = head_dim // 2
    angle = rng.standard_normal((50, half))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    position = np.array([0, 49, 7, 7], np.int32)
    x = rng.standard_normal((4, heads, head_dim)).astype(np.float32)
    pairs = x[..., :half] + 1j * x[..., half:]
    turned = pairs * np.exp(1j * angle)[position][:, None, :]
    kernels.rotary(x, cos, sin, position)
    np.testing.assert_allclose(x[..., :half], turned.real, atol=2e-6)
    np.testing.assert_allclose(x[..., half:], turned.imag, atol=2e-6)


def test_rotary_refuses() -> None:
    table = np.ones((4, 2), np.float32)
    for position, word in ((4, "position 4"), (-1, "position -1")):
        with pytest.raises(ConfigError, match=word):
            where = np.array([position], np.int32)
            kernels.rotary(np.ones((1, 2, 4), np.float32), table, table, where)
    with pytest.raises(ConfigError, match="even"):
        kernels.rotary(np.ones((1, 2, 5), np.float32), table, table, np.zeros(1, np.int32))


def oracle(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], position: Any, slot: Any, window: int = 0
) -> NDArray[np.float64]:
    out = np.empty(q.shape, np.float64)
    share = q.shape[1] // k.shape[1]
    for b, h in np.ndindex(q.shape[:2]):
        first = max(0, position[b] + 1 - window) if window else 0
        keys = k[slot[b], h // share, first : position[b] + 1].astype(np.float64)
        values = v[slot[b], h // share, first : position[b] + 1].astype(np.float64)
        score = keys @ q[b, h].astype(np.float64) / np.sqrt(q.shape[2])
        weight = np.exp(score - score.max())
        out[b, h] = weight @ values / weight.sum()
    return out


@settings(max_examples=60, deadline=None)
@given(
    kv_heads=st.integers(1, 3),
    share=st.integers(1, 3),
    head_dim=st.integers(1, 70),
    context=st.integers(1, 150),
    batch=st.integers(1, 32),
    slots=st.integers(1, 3),
    window=st.just(0) | st.integers(1, 160),
    spread=st.sampled_from([1.0, 30.0]),
    variant=st.sampled_from(VARIANTS),
    seed=st.integers(0, 99),
)
def test_attention_matches_float64(
    kv_heads: int,
    share: int,
    head_dim: int,
    context: int,
    batch: int,
    slots: int,
    window: int,
    spread: float,
    variant: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    q = (spread * rng.standard_normal((batch, kv_heads * share, head_dim))).astype(np.float32)
    k = rng.standard_normal((slots, kv_heads, context, head_dim)).astype(np.float32)
    v = rng.standard_normal(k.shape).astype(np.float32)
    position = rng.integers(0, context, batch).astype(np.int32)
    slot = rng.integers(0, slots, batch).astype(np.int32)
    with forced(variant):
        out = kernels.attention(q, k, v, position, slot_B=slot, window=window)
    np.testing.assert_allclose(out, oracle(q, k, v, position, slot, window), atol=3e-5 * spread)


def test_a_window_of_all_positions_changes_no_bit_and_what_lies_before_it_is_not_read() -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((3, 4, 16)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 2, 90, 16)).astype(np.float32)
    position = np.array([10, 88, 89], np.int32)
    whole = kernels.attention(q, k, v, position)
    np.testing.assert_array_equal(kernels.attention(q, k, v, position, window=90), whole)
    k[:, :, :80], v[:, :, :80] = np.nan, np.nan
    assert np.isfinite(kernels.attention(q[1:], k, v, position[1:], window=9)).all()


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_is_the_same_alone_and_with_any_threads(variant: str, window: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((32, 5, 64)).astype(np.float32)
    k, v = rng.standard_normal((2, 1, 5, 200, 64)).astype(np.float32)
    position = np.arange(100, 132, dtype=np.int32)
    with forced(variant):
        alone = [
            kernels.attention(q[b : b + 1], k, v, position[b : b + 1], window=window)
            for b in range(32)
        ]
        for threads in (1, 2, 3):
            with kernels.Pool(threads) as pool:
                together = kernels.attention(q, k, v, position, window=window, pool=pool)
            np.testing.assert_array_equal(together, np.concatenate(alone))


def test_attention_refuses() -> None:
    q, cache = np.ones((1, 4, 8), np.float32), np.ones((1, 2, 10, 8), np.float32)
    zero = np.zeros(1, np.int32)
    with pytest.raises(ConfigError, match="position 10 of a context of 10"):
        kernels.attention(q, cache, cache, zero + 10)
    with pytest.raises(ConfigError, match="position -1"):
        kernels.attention(q, cache, cache, zero - 1)
    with pytest.raises(ConfigError, match="slot 1"):
        kernels.attention(q, cache, cache, zero, slot_B=zero + 1)
    with pytest.raises(ConfigError, match="window -1"):
        kernels.attention(q, cache, cache, zero, window=-1)
    with pytest.raises(ConfigError, match="divide"):
        kernels.attention(q, cache.repeat(2, 1)[:, :3].copy(), cache[:, :1].repeat(3, 1), zero)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 300), batch=st.integers(1, 32), seed=st.integers(0, 99), gate=st.booleans())
def test_split_lists_every_active_neuron_once(n: int, batch: int, seed: int, gate: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((batch, n)).astype(np.float32)
    device = rng.integers(0, 2, n).astype(np.int8)
    active = scores >= np.float32(1.5)
    lists = kernels.split(scores, 1.5, device, with_gate=gate)
    for index, one in enumerate(lists):
        ids = np.flatnonzero(active.any(axis=0) & (device == index))
        np.testing.assert_array_equal(one.ids, ids)
        bits = (one.members[None, :] >> np.arange(batch, dtype=np.uint32)[:, None]) & 1
        np.testing.assert_array_equal(bits.astype(bool), active[:, ids])
        if gate:
            assert one.gate_KB is not None
            np.testing.assert_array_equal(one.gate_KB, scores[:, ids].T)
        else:
            assert one.gate_KB is None


def test_split_at_the_threshold_and_with_nan() -> None:
    least = np.float32(1e-45)
    scores = np.array([[0.0, least, -0.0, np.nan, np.inf, -1.0]], np.float32)
    first, second = kernels.split(scores, float(least), np.zeros(6, np.int8))
    assert first.ids.tolist() == [1, 4]
    assert second.ids.tolist() == []


def test_split_refuses() -> None:
    scores = np.zeros((1, 3), np.float32)
    for bad in (MAX_DEVICES, -1):
        with pytest.raises(ConfigError, match=f"not in 0 to {MAX_DEVICES - 1}"):
            kernels.split(scores, 0.0, np.array([0, 1, bad], np.int8))
    with pytest.raises(ConfigError, match="batch 33"):
        kernels.split(np.zeros((33, 3), np.float32), 0.0, np.zeros(3, np.int8))
