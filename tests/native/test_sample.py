from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.weights import VARIANTS, forced

from hotcold.native.bindings import kernels
from hotcold.native.bindings.token_kernels import draw
from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import Sampling

GREEDY = Sampling()


def unchecked(**fields: Any) -> Sampling:
    """A Sampling past its own checks, so that those of the native code are met."""
    made = Sampling()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def philox(seed: int, position: int) -> list[int]:
    """Philox4x32-10, key seed, counter (position, 0)."""
    c = [position & 0xFFFFFFFF, position >> 32, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (p1 >> 32) ^ c[1] ^ k[0],
            p1 & 0xFFFFFFFF,
            (p0 >> 32) ^ c[3] ^ k[1],
            p0 & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def uniform(seed: int, position: int) -> float:
    c = philox(seed, position)
    return float(((c[0] >> 5) * 2**26 + (c[1] >> 6)) / 2**53)


def kept(logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float) -> list[int]:
    """Ids that may be drawn, best first, by sorting everything in float64."""
    order = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    if top_k:
        order = order[:top_k]
    weight = np.exp((logits[order].astype(np.float64) - logits.max()) / temperature)
    before = np.concatenate([[0.0], np.cumsum(weight / weight.sum())[:-1]])
    return [int(i) for i in (order[before < top_p] if top_p > 0 else order[:1])]


def test_random_numbers_are_philox() -> None:
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # Random123's vector
    flat = np.zeros(1000, np.float32)
    for seed, position in ((0, 0), (7, 3), (2**64 - 1, 2**40 + 5)):
        id_, _ = kernels.sample(flat, Sampling(temperature=1.0, seed=seed), position)
        assert id_ == int(uniform(seed, position) * 1000)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("vocab", [1, 2, 7, 64, 8192, 32001, 128_256])
def test_greedy_takes_the_lowest_id_of_the_largest(variant: str, vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = rng.standard_normal(vocab).astype(np.float32)
    best = [vocab - 1, vocab // 2]
    logits[best] = 9.0
    with forced(variant):
        id_, logprob = kernels.sample(logits, GREEDY)
    assert id_ == min(best)
    l64 = logits.astype(np.float64)
    assert logprob == pytest.approx(9 - (9 + np.log(np.exp(l64 - 9).sum())), abs=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_alternatives_in_order_the_lowest_id_first_among_equals(variant: str) -> None:
    rng = np.random.default_rng(4)
    logits = (rng.integers(0, 5, 1000) * 0.5).astype(np.float32)
    logits[:3] = -np.inf
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    with forced(variant):
        for count in (0, 1, 20):
            found = draw(logits, Sampling(temperature=1.0, seed=count, logprobs=count))
            order = np.argsort(-logits, kind="stable")[:count]
            assert [id_ for id_, _ in found.top] == order.tolist()
            assert [logprob for _, logprob in found.top] == pytest.approx(exact[order], abs=2e-5)
            assert found[:2] == kernels.sample(logits, Sampling(temperature=1.0, seed=count))
        few = draw(logits[:5], Sampling(logprobs=20))
        assert {id_ for id_, _ in few.top} == {3, 4}, "none that cannot be drawn"
    with pytest.raises(ConfigError, match="logprobs 21 is not a whole number in 0..20"):
        Sampling(logprobs=21)


@settings(max_examples=150, deadline=None)
@given(
    vocab=st.integers(1, 3000),
    temperature=st.sampled_from([0.2, 0.8, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 5000]),
    top_p=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    levels=st.sampled_from([3, 10_000]),
    seed=st.integers(0, 2**64 - 1),
    variant=st.sampled_from(VARIANTS),
)
def test_draws_stay_within_top_k_and_top_p(
    vocab: int, temperature: float, top_k: int, top_p: float, levels: int, seed: int, variant: str
) -> None:
    rng = np.random.default_rng(seed % 1000)
    logits = (rng.integers(0, levels, vocab) * (6.0 / levels)).astype(np.float32)
    options = {"temperature": temperature, "top_p": top_p, "seed": seed}
    with forced(variant):
        id_, logprob = kernels.sample(logits, unchecked(top_k=top_k, **options))
    # float32 sums may keep one id more or less at the edge of top-p
    allowed = kept(logits, temperature, top_k, top_p * (1 + 1e-5))
    assert id_ in allowed
    l64 = logits.astype(np.float64)
    exact = l64[id_] - l64.max() - np.log(np.exp(l64 - l64.max()).sum())
    assert logprob == pytest.approx(exact, abs=2e-5)


@pytest.mark.parametrize("top_k,top_p", [(0, 1.0), (5, 1.0), (0, 0.7), (12, 0.8), (100, 0.999)])
def test_frequencies_are_the_distribution(top_k: int, top_p: float) -> None:
    logits = np.linspace(-2, 2, 20).astype(np.float32)[np.random.default_rng(1).permutation(20)]
    ids = kept(logits, 0.7, top_k, top_p)
    weight = np.zeros(20)
    weight[ids] = np.exp(logits[ids].astype(np.float64) / 0.7)
    n, sampling = 4000, Sampling(temperature=0.7, top_k=top_k, top_p=top_p, seed=5)
    counts = np.zeros(20)
    for position in range(n):
        id_, _ = kernels.sample(logits, sampling, position)
        counts[id_] += 1
    expected = weight / weight.sum() * n
    assert (counts[weight == 0] == 0).all()
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected + 1)).all()


def test_a_draw_depends_on_seed_and_position_only() -> None:
    logits = np.random.default_rng(0).standard_normal(5000).astype(np.float32)

    def draw(seed: int, position: int) -> int:
        return kernels.sample(logits, Sampling(temperature=1.0, seed=seed), position)[0]

    draws = [draw(3, p) for p in range(50)]
    again = [draw(3, p) for p in reversed(range(50))]
    other = [draw(4, p) for p in range(50)]
    assert draws == again[::-1]
    assert draws != other
    assert len(set(draws)) > 40


def test_impossible_ids_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, np.float32)
    logits[[17, 80]] = 1.0
    for position in range(40):
        for top_k, top_p in ((0, 1.0), (50, 1.0), (0, 0.999), (0, 1.0)):
            sampling = Sampling(temperature=2.0, top_k=top_k, top_p=top_p)
            id_, logprob = kernels.sample(logits, sampling, position)
            assert id_ in (17, 80)
            assert logprob == pytest.approx(-np.log(2), abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 500, 4999])
def test_damaged_logits_are_refused(variant: str, bad: float, where: int) -> None:
    logits = np.zeros(5000, np.float32)
    logits[where] = bad
    for temperature in (0.0, 1.0):
        with forced(variant), pytest.raises(ConfigError, match="NaN or infinite"):
            kernels.sample(logits, unchecked(temperature=temperature))


def test_bad_parameters_are_refused() -> None:
    logits = np.zeros(8, np.float32)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="temperature"):
            kernels.sample(logits, unchecked(temperature=temperature))
    for top_p in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="top_p"):
            kernels.sample(logits, unchecked(temperature=1.0, top_p=top_p))
    with pytest.raises(ConfigError, match="top_k -1"):
        kernels.sample(logits, unchecked(temperature=1.0, top_k=-1))
    with pytest.raises(ConfigError, match="0 logits"):
        kernels.sample(np.empty(0, np.float32), GREEDY)
    with pytest.raises(ConfigError, match="-infinity"):
        kernels.sample(np.full(8, -np.inf, np.float32), GREEDY)
