from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.weights import DTYPES, VARIANTS, float64, forced, random_weights

from hotcold.native.bindings import kernels
from hotcold.native.errors import ConfigError


def oracle(
    records: NDArray[Any], ids: NDArray[Any], x: NDArray[Any], mask: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    d = x.shape[1]
    w = float64(records)[ids]
    x64 = x.astype(np.float64)
    gate = np.maximum(x64 @ w[:, :d].T, 0)
    if mask is not None:
        gate = gate * mask
    return (gate * (x64 @ w[:, d : 2 * d].T)) @ w[:, 2 * d : 3 * d]


def case(
    seed: int, n: int, d: int, batch: int, dtype: str, pad: int = 0
) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    records = random_weights(rng, (n, 3 * d + pad), dtype)
    return records, rng.standard_normal((batch, d)).astype(np.float32)


def some_ids(seed: int, n: int, share: float) -> NDArray[np.int32]:
    return np.flatnonzero(np.random.default_rng(seed).random(n) < share).astype(np.int32)


def close(got: NDArray[Any], exact: NDArray[Any]) -> None:
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(got, exact, atol=5e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 3, 7, 65, 320])
def test_matches_float64(variant: str, dtype: str, d: int) -> None:
    for n, batch, share in ((41, 1, 1.0), (333, 1, 0.5), (77, 3, 0.7), (129, 32, 0.4)):
        records, x = case(d, n, d, batch, dtype, pad=5)
        ids = some_ids(n, n, share)
        with forced(variant):
            result = kernels.ffn(records, ids, x)
        close(result.y_BD, oracle(records, ids, x))
        assert result.gate_rows == len(ids) * batch


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_is_the_same_alone_in_any_batch_and_with_any_threads(
    variant: str, dtype: str
) -> None:
    n, d = 301, 72
    records, x = case(1, n, d, 32, dtype)
    rng = np.random.default_rng(2)
    asks = rng.random((32, n)) < 0.4  # token, neuron
    with forced(variant):
        alone = np.concatenate(
            [
                kernels.ffn(records, np.flatnonzero(asks[b]).astype(np.int32), x[b : b + 1]).y_BD
                for b in range(32)
            ]
        )
        for batch in (2, 5, 32):
            ids = np.flatnonzero(asks[:batch].any(axis=0)).astype(np.int32)
            bits = (asks[:batch, ids] * (1 << np.arange(batch, dtype=np.uint64))[:, None]).sum(0)
            members = bits.astype(np.uint32)
            for threads in (1, 2, 3):
                with kernels.Pool(threads) as pool:
                    got = kernels.ffn(records, ids, x[:batch], members=members, pool=pool)
                np.testing.assert_array_equal(got.y_BD, alone[:batch])
                assert got.gate_rows == asks[:batch].sum()
    for b in range(32):
        close(alone[b : b + 1], oracle(records, np.flatnonzero(asks[b]), x[b : b + 1]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 7])
def test_given_gates_change_nothing_but_the_bytes(variant: str, dtype: str, batch: int) -> None:
    n, d = 203, 65
    records, x = case(3, n, d, batch, dtype)
    ids = some_ids(4, n, 0.6)
    with forced(variant):
        gates = kernels.gemv(records[:, :d], x)  # the gate rows, a record apart
        first = kernels.ffn(records, ids, x)
        gate_KB = np.ascontiguousarray(gates[:, ids].T)
        given_ = kernels.ffn(records, ids, x, gate_KB=gate_KB)
    np.testing.assert_array_equal(given_.y_BD, first.y_BD)
    assert given_.gate_rows == 0
    assert given_.up_down_rows == first.up_down_rows == (gate_KB > 0).sum()
    row = d * records.itemsize
    assert first.bytes == len(ids) * row + 2 * row * (gate_KB > 0).any(axis=1).sum()
    assert given_.bytes == first.bytes - len(ids) * row


def test_splitting_the_neurons_over_two_devices_adds_up() -> None:
    n, d = 400, 33
    records, x = case(5, n, d, 4, "float16")
    hot = some_ids(6, n, 0.3)
    cold = np.setdiff1d(np.arange(n, dtype=np.int32), hot)
    both = kernels.ffn(records, hot, x).y_BD + kernels.ffn(records, cold, x).y_BD
    close(both, oracle(records, np.arange(n), x))


def test_fired_counts_are_added() -> None:
    n, d = 90, 16
    records, x = case(7, n, d, 9, "float32")
    ids = some_ids(8, n, 0.5)
    fired = np.full(n, 10, np.int64)
    with kernels.Pool(2) as pool:
        result = kernels.ffn(records, ids, x, fired_N=fired, pool=pool)
    gates = x @ records[ids, :d].T
    expected = np.full(n, 10)
    expected[ids] += (gates > 0).sum(axis=0)
    np.testing.assert_array_equal(fired, expected)
    assert result.up_down_rows == (gates > 0).sum()


@pytest.mark.parametrize("batch", [1, 4])
def test_nothing_listed_and_nothing_fired_give_zeros(batch: int) -> None:
    records, x = case(9, 50, 24, batch, "float16")
    with kernels.Pool(2) as pool:
        empty = kernels.ffn(records, np.empty(0, np.int32), x, pool=pool)
        shy = -np.ones((50, batch), np.float32)
        silent = kernels.ffn(records, np.arange(50, dtype=np.int32), x, gate_KB=shy, pool=pool)
    for result in (empty, silent):
        np.testing.assert_array_equal(result.y_BD, np.zeros((batch, 24), np.float32))
        assert (result.gate_rows, result.up_down_rows, result.bytes) == (0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    d=st.integers(1, 70),
    batch=st.integers(1, 32),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    variant=st.sampled_from(VARIANTS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_shape(
    n: int, d: int, batch: int, share: float, dtype: str, variant: str, threads: int, seed: int
) -> None:
    records, x = case(seed, n, d, batch, dtype)
    rng = np.random.default_rng(seed)
    ids = some_ids(seed, n, share)
    members = rng.integers(0, 1 << batch, len(ids), np.uint64).astype(np.uint32)
    mask = (members[None, :] >> np.arange(batch, dtype=np.uint32)[:, None]) & 1
    with forced(variant), kernels.Pool(threads) as pool:
        result = kernels.ffn(records, ids, x, members=members, pool=pool)
    close(result.y_BD, oracle(records, ids, x, mask))
    assert result.gate_rows == mask.sum()


def test_refuses_bad_lists() -> None:
    records, x = case(11, 20, 8, 1, "float32")

    def run(ids: list[int]) -> None:
        kernels.ffn(records, np.array(ids, np.int32), x)

    with pytest.raises(ConfigError, match="does not ascend at 1 places"):
        run([3, 2])
    with pytest.raises(ConfigError, match="does not ascend"):
        run([3, 3])
    with pytest.raises(ConfigError, match="ids 3 to 20"):
        run([3, 20])
    with pytest.raises(ConfigError, match="ids -1 to 3"):
        run([-1, 3])
    with pytest.raises(ConfigError, match="contiguous rows"):
        kernels.ffn(records, np.empty(0, np.int32), np.ones((1, 9), np.float32))
    with pytest.raises(ConfigError, match="batch 33"):
        kernels.ffn(records, np.empty(0, np.int32), np.ones((33, 8), np.float32))
