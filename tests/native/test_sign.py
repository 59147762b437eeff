"""hc_sign against its readable reference: equal to the last bit, whatever computes it."""

import numpy as np
import pytest
from support.weights import VARIANTS, forced

from hotcold.native.bindings import kernels
from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.sign import pack_signs
from hotcold.runtime.predictors.predictor_forms import SignLayer


def layer(rng: np.random.Generator, n: int, d: int, bits: int, bias: bool = True) -> SignLayer:
    return SignLayer(
        pack_signs(rng.random((n, d)) < 0.5),
        rng.random(n, np.float32),
        rng.standard_normal(n).astype(np.float32) if bias else None,
        rng.random(d, np.float32),
        bits,
        threshold=0.0,
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("d", [1, 7, 63, 64, 65, 320, 577, 1040])
def test_every_variant_batch_and_thread_gives_the_reference(variant: str, d: int) -> None:
    rng = np.random.default_rng(d)
    x_BD = rng.standard_normal((32, d)).astype(np.float32)
    x_BD[1], x_BD[2] = 0, 1e-42  # nothing to divide by, and next to nothing
    with forced(variant), kernels.Pool(2) as pool:
        for bits in range(1, 9):
            one = layer(rng, 523, d, bits, bias=bits % 2 == 0)
            given = {"input_bits": bits, "bias_N": one.bias_N, "column_D": one.column_D}
            with np.errstate(over="ignore", invalid="ignore"):
                want = one.scores(x_BD)
            for used in (None, pool):
                got = kernels.sign(one.signs_NW, one.scale_N, x_BD, pool=used, **given)
                np.testing.assert_array_equal(got, want)
            alone = kernels.sign(one.signs_NW, one.scale_N, x_BD[5:6], **given)
            np.testing.assert_array_equal(alone[0], want[5])


def test_many_bits_approach_the_product_and_one_is_that_of_signs() -> None:
    rng = np.random.default_rng(0)
    signs_ND, x_BD = rng.random((40, 64)) < 0.5, rng.standard_normal((3, 64)).astype(np.float32)
    ones = np.ones(40, np.float32)
    exact = x_BD.astype(float) @ (2.0 * signs_ND.T - 1)
    packed = pack_signs(signs_ND)
    fine = kernels.sign(packed, ones, x_BD, input_bits=8)
    assert np.abs(fine - exact).max() < 64 * np.abs(x_BD).max() / 256
    coarse = kernels.sign(packed, ones, x_BD, input_bits=1)
    votes = np.where(x_BD >= 0, 1, -1) @ (2 * signs_ND.T.astype(int) - 1)
    step = np.abs(x_BD).max(axis=1, keepdims=True) / 2
    np.testing.assert_array_equal(coarse, votes.astype(np.float32) * step)


def test_what_is_not_finite_is_no_crash() -> None:
    x_BD = np.array([[np.nan, np.inf, -np.inf, 1.0]], np.float32)
    found = kernels.sign(np.ones((3, 1), np.uint64), np.ones(3, np.float32), x_BD, input_bits=4)
    assert found.shape == (1, 3)


def test_refusals() -> None:
    rows, ones = np.ones((3, 2), np.uint64), np.ones(3, np.float32)
    x_BD = np.ones((1, 65), np.float32)
    for bits in (0, 9):
        with pytest.raises(ConfigError, match=f"of {bits} bits; 1 to 32 of 1 to 8"):
            kernels.sign(rows, ones, x_BD, input_bits=bits)
    with pytest.raises(ConfigError, match="words of a row"):
        kernels.sign(rows, ones, np.ones((1, 64), np.float32), input_bits=2)
    with pytest.raises(ConfigError, match="scale"):
        kernels.sign(rows, ones[:2], x_BD, input_bits=2)
    with pytest.raises(ConfigError, match="batch 33"):
        kernels.sign(rows, ones, np.ones((33, 65), np.float32), input_bits=2)
