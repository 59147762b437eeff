"""Every activation: its table, and the operator on every CPU variant against numpy in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.activations import ACTIVATIONS, KINDS, clear_threshold, factor, fires
from support.checkout import ROOT
from support.weights import DTYPES, VARIANTS, float64, forced, random_weights

from hotcold.native.abi import names
from hotcold.native.abi.generated import ACTIVATION_ROWS, Activation
from hotcold.native.bindings import kernels
from hotcold.native.bindings._arrays import ffn_args, ffn_scratch
from hotcold.native.bindings._ffi import lib
from hotcold.native.errors import ConfigError

NUMBERS = (-2.0, -0.5, -0.0, 0.0, 0.125, 0.25, 0.5, 3.0)


class Case:
    """Records, inputs and what an activation makes of them."""

    def __init__(self, name: str, gated: bool, batch: int, dtype: str, n: int, d: int) -> None:
        rng = np.random.default_rng(n + d + batch)
        rows = 3 if gated else 2
        self.records = random_weights(rng, (n, rows * d), dtype)
        self.x = rng.standard_normal((batch, d)).astype(np.float32)
        w, x = float64(self.records), self.x.astype(np.float64)
        self.gate_BN = x @ w[:, :d].T
        self.up_BN = x @ w[:, d : 2 * d].T if gated else None
        self.threshold = clear_threshold(name, self.gate_BN)
        self.fires_BN = fires(name, self.gate_BN, self.threshold)
        self.c_BN = factor(name, self.gate_BN, self.up_BN, self.threshold)
        self.down_ND = w[:, (rows - 1) * d :]
        self.how: dict[str, Any] = {"gated": gated, "activation": name, "threshold": self.threshold}
        self.ids = np.flatnonzero(rng.random(n) < 0.7).astype(np.int32)

    def run(self, b: slice = slice(None), **more: Any) -> kernels.FfnResult:
        """The operator for some of the tokens."""
        return kernels.ffn(self.records, self.ids, self.x[b], **self.how, **more)


def close(got: NDArray[Any], exact: NDArray[Any]) -> None:
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(got, exact, atol=5e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_table_is_plain_pythons(name: str) -> None:
    """Over numbers, arrays and tensors alike, and what C expands of it the same."""
    assert tuple(names.ACTIVATIONS) == ACTIVATIONS
    row = ACTIVATION_ROWS[names.ACTIVATIONS[name]]
    t = 0.25 if name == "fatrelu" else 0.0
    assert row.both == (name == "relu both")
    expected = [bool(fires(name, g, t)) for g in NUMBERS]
    assert [row.fires(g, t) for g in NUMBERS] == expected
    assert row.fires(np.array(NUMBERS), t).tolist() == expected
    assert row.fires(torch.tensor(NUMBERS), t).tolist() == expected
    for g, on in zip(NUMBERS, expected, strict=True):
        for u in (-1.5, 0.0, 2.0):
            value = row.value(g) * (max(u, 0.0) if row.both else u) if on else 0.0
            assert value == factor(name, np.float64(g), np.float64(u), t)
            record = np.array([[g, u, 1.0]], np.float32)
            how: dict[str, Any] = {"activation": name, "threshold": t}
            one = kernels.ffn(record, np.zeros(1, np.int32), np.ones((1, 1), np.float32), **how)
            assert one.y_BD[0, 0] == pytest.approx(np.float32(value), rel=2e-7, abs=0)
            assert one.up_down_rows == on
            assert one.bytes == 4 + 4 * on + 4 * (on and not (row.both and value == 0))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "gated"), KINDS)
def test_matches_float64_for_any_batch_and_threads(
    name: str, gated: bool, dtype: str, variant: str
) -> None:
    for n, d, batch in ((41, 7, 1), (333, 65, 1), (77, 33, 3), (129, 320, 32)):
        case = Case(name, gated, batch, dtype, n, d)
        ids, count = case.ids, np.zeros(n, np.int64)
        with forced(variant):
            got = case.run(fired_N=count)
            alone = [case.run(slice(b, b + 1)).y_BD for b in range(batch)]
            for threads in (2, 3):
                with kernels.Pool(threads) as pool:
                    np.testing.assert_array_equal(case.run(pool=pool).y_BD, got.y_BD)
        np.testing.assert_array_equal(np.concatenate(alone), got.y_BD)
        close(got.y_BD, case.c_BN[:, ids] @ case.down_ND[ids])
        fired_BK = case.fires_BN[:, ids]
        np.testing.assert_array_equal(count[ids], fired_BK.sum(axis=0))
        assert got.up_down_rows == count.sum() == fired_BK.sum()
        assert 0 < fired_BK.mean() < 1 + (name == "silu")
        row = d * case.records.itemsize
        rows = len(ids) + gated * fired_BK.any(axis=0).sum()
        assert got.bytes == row * (rows + (case.c_BN[:, ids] != 0).any(axis=0).sum())


@pytest.mark.parametrize("batch", [1, 5])
def test_relu_on_both_reads_no_down_column_of_what_its_up_row_shuts(batch: int) -> None:
    both, plain = (Case(name, True, batch, "float16", 300, 48) for name in ("relu both", "relu"))
    more, less = plain.run(), both.run()
    assert less.up_down_rows == more.up_down_rows and less.gate_rows == more.gate_rows
    fired, kept = (c[:, both.ids].any(axis=0).sum() for c in (both.fires_BN, both.c_BN != 0))
    assert kept < fired
    assert more.bytes - less.bytes == (fired - kept) * 48 * 2
    never = {"gate_KB": np.ones((len(both.ids), batch), np.float32)}
    both.records[:, 48:96] = 0  # up . x is 0: every gate fires, and nothing is added
    shut = both.run(**never)
    np.testing.assert_array_equal(shut.y_BD, 0)
    assert shut.bytes == len(both.ids) * 48 * 2
    assert shut.up_down_rows == len(both.ids) * batch


def test_a_value_that_is_no_number_stays_one() -> None:
    for name in ACTIVATIONS:
        how: dict[str, Any] = {"activation": name, "threshold": 0.0}
        for record in ([1.0, math.nan, 1.0], [1.0, 1.0, math.nan]):
            w = np.array([record], np.float32)
            got = kernels.ffn(w, np.zeros(1, np.int32), np.ones((1, 1), np.float32), **how)
            assert math.isnan(got.y_BD[0, 0]), (name, record)


@pytest.mark.parametrize("code", [-1, len(Activation)])
def test_an_unknown_activation_is_refused(code: int) -> None:
    x, y = np.ones((1, 4), np.float32), np.empty((1, 4), np.float32)
    args = ffn_args("float32", x, y, 64, activation=code, scratch=ffn_scratch(0, 1))
    with pytest.raises(ConfigError, match=f"activation {code} is unknown; 0 to 4 are"):
        kernels.check(lib.hc_ffn(args, kernels.handle(None)))


def test_what_fires_is_written_in_the_table_alone() -> None:
    """No comparison of a gate with 0 in the code of kernels, loops, training or predictors."""
    from re import compile as pattern

    from support.checkout import PACKAGES, tracked_under

    compared = pattern(r"\b(gates?|g)(_[A-Z]+)?(\[[^]]*\]|\([^)]*\))? *>=? *0(\.0f?)?\b")
    own = {"native/abi/activations.h"}
    # The sign of a weight, which the sign predictor keeps.
    own |= {"policies/predictor/sign.py"}
    found = []
    for suffix in (".py", ".c", ".h", ".cu", ".cuh"):
        for path in tracked_under(*PACKAGES, "examples", suffix=suffix):
            for number, line in enumerate((ROOT / path).read_text().splitlines(), start=1):
                if compared.search(line) and path.as_posix() not in own:
                    found.append(f"{path}:{number}: {line.strip()}")
    assert not found, found
    for line in ("if (gate[i] > 0) {", "on = g > 0 && (", "gates_N > 0", "gate > 0 ? c : 0"):
        assert compared.search(line)
    assert compared.search("model.gates(index, x_RD) > 0")
