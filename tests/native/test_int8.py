"""int8 rows with their scales: every variant against float64 of the exactly dequantised weights."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.weights import VARIANTS, close_dot, forced

from hotcold.native.abi.formats import FORMATS
from hotcold.native.bindings import kernels
from hotcold.native.errors import ConfigError
from hotcold.runtime.model.checkpoints.quantised import STORED

INT8 = FORMATS["int8"]
SIZES = [1, 3, 15, 16, 17, 31, 32, 63, 64, 65, 97, 128, 200, 320, 1040, 2085]


def rows(rng: Any, n: int, d: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Rows as stored, and their exact values; some groups are nothing, or next to nothing."""
    w = rng.standard_normal((n, d)).astype(np.float32)
    w[0, :64] = 0
    w[n // 2, :64] *= 1e-6  # subnormal scales
    raw = STORED["int8"].pack(w, "float32")
    return raw.view(np.int8), STORED["int8"].unpack(raw, d).astype(np.float64)


def records(
    rng: Any, n: int, d: int, parts: int, bias: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int8], list[NDArray[np.float64]]]:
    made = [rows(rng, n, d) for _ in range(parts)]
    tail = [] if bias is None else [bias.view(np.int8).reshape(n, 4)]
    tail += [np.full((n, 12), 99, np.int8)]  # what is not looked at
    return np.concatenate([raw for raw, _ in made] + tail, axis=1), [exact for _, exact in made]


def close(got: NDArray[Any], exact: NDArray[Any]) -> None:
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(got, exact, atol=5e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("d", SIZES)
def test_dots_match_float64_alone_and_in_company(variant: str, d: int) -> None:
    rng = np.random.default_rng(d)
    for n, batch in ((1, 1), (37, 1), (6, 2), (13, 7), (9, 32)):
        (w, exact), x = rows(rng, n, d), rng.standard_normal((batch, d)).astype(np.float32)
        with forced(variant), kernels.Pool(2) as pool:
            y = kernels.gemv(w, x)
            alone = [kernels.gemv(w, x[b : b + 1]) for b in range(batch)]
            np.testing.assert_array_equal(y, np.concatenate(alone))
            np.testing.assert_array_equal(y, kernels.gemv(w, x, pool=pool))
            np.testing.assert_array_equal(y[:, -1:], kernels.gemv(w[-1:], x))
        close_dot(y, x.astype(np.float64) @ exact.T, np.abs(x) @ np.abs(exact).T)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_and_every_scale_is_exact(variant: str) -> None:
    d, halves = 255, np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    w = np.zeros((len(halves), INT8.part_bytes(1)), np.int8)
    w[:, INT8.scales(1) : INT8.scales(1) + 2] = halves.view(np.int8).reshape(-1, 2)
    one = np.ones((1, 1), np.float32)
    with forced(variant):
        for q in (-127, -1, 3, 127):
            w[:, 0] = q
            exact = halves.astype(np.float32) * np.float32(q)
            np.testing.assert_array_equal(kernels.gemv(w, one)[0], exact)
        w = np.zeros((d, INT8.part_bytes(1)), np.int8)
        w[:, 0] = np.arange(-127, 128)
        w[:, INT8.scales(1) : INT8.scales(1) + 2] = np.array([1], np.float16).view(np.int8)
        np.testing.assert_array_equal(kernels.gemv(w, one)[0], np.arange(-127, 128))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("d", [1, 17, 64, 97, 320, 1040, 2085])
def test_ffn_matches_float64_in_any_batch_and_with_any_threads(
    variant: str, gated: bool, d: int
) -> None:
    rng, n, batch = np.random.default_rng(d), 157, 5
    bias = None if gated else rng.standard_normal(n).astype(np.float32)
    raw, parts = records(rng, n, d, 3 if gated else 2, bias)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    ids = np.flatnonzero(rng.random(n) < 0.6).astype(np.int32)
    options: dict[str, Any] = {"gated": gated, "biased": not gated}
    with forced(variant):
        result = kernels.ffn(raw, ids, x, **options)
        alone = [kernels.ffn(raw, ids, x[b : b + 1], **options) for b in range(batch)]
        np.testing.assert_array_equal(result.y_BD, np.concatenate([one.y_BD for one in alone]))
        for threads in (2, 3, 5):
            with kernels.Pool(threads) as pool:
                for given in (x, x[:1]):
                    got = kernels.ffn(raw, ids, given, pool=pool, **options).y_BD
                    np.testing.assert_array_equal(got, result.y_BD[: len(given)])
    x64 = x.astype(np.float64)
    hidden = x64 @ parts[0][ids].T + (0 if bias is None else bias[ids])
    c = np.maximum(hidden, 0) * (x64 @ parts[1][ids].T if gated else 1)
    close(result.y_BD, c @ parts[-1][ids])
    fired = int((hidden[0] > 0).sum())
    assert alone[0].up_down_rows == fired
    row, gate = INT8.read_bytes(d), 0 if gated else 4
    assert row == d + 2 * -(-d // 64)
    assert alone[0].bytes == len(ids) * (row + gate) + fired * row * (2 if gated else 1)


def test_refuses_rows_of_another_length() -> None:
    w, x = rows(np.random.default_rng(0), 4, 64)[0], np.ones((1, 65), np.float32)
    with pytest.raises(ConfigError, match="a row of w has 80 entries, 96 are needed"):
        kernels.gemv(w, x)
    with pytest.raises(ConfigError, match="contiguous rows of >= 288"):
        kernels.ffn(w, np.zeros(1, np.int32), x)
