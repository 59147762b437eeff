"""The plain ReLU feed-forward operator with biases, against float64 on every CPU variant."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.weights import DTYPES, VARIANTS, float64, forced, random_weights

from hotcold.native.bindings import kernels
from hotcold.native.errors import ConfigError


def case(
    seed: int, n: int, d: int, batch: int, dtype: str, biased: bool = True
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    """Records, inputs and the biases in the records (zeros where there are none)."""
    rng = np.random.default_rng(seed)
    records = random_weights(rng, (n, 2 * d + 6), dtype)
    biases = np.zeros(n, np.float32)
    if biased:
        biases = rng.standard_normal(n).astype(np.float32)
        begin = 2 * d * records.itemsize
        records.view(np.uint8).reshape(n, -1)[:, begin : begin + 4] = biases.view(np.uint8).reshape(
            n, 4
        )
    return records, rng.standard_normal((batch, d)).astype(np.float32), biases


def oracle(
    records: NDArray[Any],
    biases: NDArray[Any],
    ids: NDArray[Any],
    x: NDArray[Any],
    mask: NDArray[Any] | None = None,
) -> NDArray[np.float64]:
    d = x.shape[1]
    w = float64(records[:, : 2 * d])[ids]
    gate = np.maximum(x.astype(np.float64) @ w[:, :d].T + biases[ids], 0)
    return (gate if mask is None else gate * mask) @ w[:, d:]


def close(got: NDArray[Any], exact: NDArray[Any]) -> None:
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(got, exact, atol=5e-6 * scale, rtol=1e-5)


def run(records: NDArray[Any], ids: NDArray[Any], x: NDArray[Any], **options: Any) -> Any:
    options = {"gated": False, "biased": True, **options}
    return kernels.ffn(records, np.asarray(ids, np.int32), x, **options)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 300),
    d=st.integers(1, 70),
    batch=st.integers(1, 32),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_matches_float64(
    variant: str, dtype: str, n: int, d: int, batch: int, biased: bool, seed: int
) -> None:
    records, x, biases = case(seed, n, d, batch, dtype, biased)
    rng = np.random.default_rng(seed)
    ids = np.flatnonzero(rng.random(n) < 0.6)
    members = rng.integers(0, 1 << batch, len(ids), np.uint64).astype(np.uint32)
    mask = (members[None, :] >> np.arange(batch, dtype=np.uint32)[:, None]) & 1
    with forced(variant):
        result = run(records, ids, x, members=members, biased=biased)
        whole = run(records, ids, x, biased=biased)
    close(result.y_BD, oracle(records, biases, ids, x, mask))
    close(whole.y_BD, oracle(records, biases, ids, x))
    assert result.gate_rows == mask.sum()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_is_the_same_alone_in_any_batch_and_with_any_threads(
    variant: str, dtype: str
) -> None:
    n, d = 301, 71
    records, x, _ = case(1, n, d, 32, dtype)
    asks = np.random.default_rng(2).random((32, n)) < 0.4  # token, neuron
    with forced(variant):
        alone = np.concatenate(
            [run(records, np.flatnonzero(asks[b]), x[b : b + 1]).y_BD for b in range(32)]
        )
        for batch in (2, 5, 32):
            ids = np.flatnonzero(asks[:batch].any(axis=0))
            bits = (asks[:batch, ids] * (1 << np.arange(batch, dtype=np.uint64))[:, None]).sum(0)
            for threads in (1, 2, 3):
                with kernels.Pool(threads) as pool:
                    members = bits.astype(np.uint32)
                    got = run(records, ids, x[:batch], members=members, pool=pool)
                np.testing.assert_array_equal(got.y_BD, alone[:batch])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 7])
def test_given_pre_activations_change_nothing_but_the_bytes(
    variant: str, dtype: str, batch: int
) -> None:
    """They come from a dense product over the records, biases a record apart."""
    n, d = 203, 64
    records, x, biases = case(3, n, d, batch, dtype)
    ids = np.flatnonzero(np.random.default_rng(4).random(n) < 0.6)
    apart = records.view(np.float32)[:, 2 * d * records.itemsize // 4]
    np.testing.assert_array_equal(apart, biases)
    with forced(variant):
        gates = kernels.gemv(records[:, :d], x, bias_R=apart)
        first = run(records, ids, x)
        gate_KB = np.ascontiguousarray(gates[:, ids].T)
        given_ = run(records, ids, x, gate_KB=gate_KB)
    np.testing.assert_array_equal(given_.y_BD, first.y_BD)
    assert given_.gate_rows == 0 and first.gate_rows == len(ids) * batch
    assert given_.up_down_rows == first.up_down_rows == (gate_KB > 0).sum()
    row = d * records.itemsize
    fired = (gate_KB > 0).any(axis=1).sum()
    assert first.bytes == len(ids) * (row + 4) + row * fired
    assert given_.bytes == row * fired


def test_fired_counts_and_short_records() -> None:
    records, x, biases = case(5, 60, 16, 9, "float32")
    fired = np.zeros(60, np.int64)
    run(records, np.arange(60), x, fired_N=fired)
    gates = x @ records[:, :16].T + biases
    np.testing.assert_array_equal(fired, (gates > 0).sum(axis=0))
    with pytest.raises(ConfigError, match=">= 33"):
        run(np.ascontiguousarray(records[:, :32]), np.arange(60), x)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("d", [1, 7, 16, 33, 768])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(variant: str, d: int, biased: bool) -> None:
    rng = np.random.default_rng(d)
    # far from 0, where variance is the hard part
    x = (100 + rng.standard_normal((5, d))).astype(np.float32)
    weight, bias = rng.standard_normal((2, d)).astype(np.float32)
    with forced(variant):
        got = kernels.layernorm(x, weight, bias if biased else None, 1e-5)
        alone = [kernels.layernorm(row[None], weight, bias if biased else None, 1e-5) for row in x]
    centred = x.astype(np.float64) - x.mean(axis=1, dtype=np.float64, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(got, exact + bias * biased, atol=2e-4)
    np.testing.assert_array_equal(got, np.concatenate(alone))
    with pytest.raises(ConfigError, match="eps -1"):
        kernels.layernorm(x, weight, None, -1.0)
