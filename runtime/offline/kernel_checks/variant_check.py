"""The oracle test of a kernel file: every operator on it against numpy in float64.

Runs as a process of its own, started by `variant.py`: it prints each case before it computes it, so
that a crash names its case, and ends with the first error as its last line. Weights and inputs end
where readable memory ends, so that reading past a row crashes here instead of going unnoticed.
"""

import itertools
import math
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.names import WEIGHT_DTYPES
from hotcold.native.bindings import kernels
from hotcold.native.bindings.pool import load_cpu_variant
from hotcold.native.errors import HotcoldError
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, to_float32
from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.options.config import Sampling

Array = NDArray[Any]
WIDTHS = (1, 7, 16, 31, 64, 65, 320, 1040)
ROUNDING = 4e-6  # of the sum of the terms' magnitudes: float32 sums of up to 1040 terms
_maps: list[mmap.mmap] = []


class Wrong(Exception):
    """A result that differs from float64's by more than allowed."""


def guarded(values: Array) -> Array:
    """A copy whose last byte is the last readable one: the page after it is not mapped."""
    page = mmap.PAGESIZE
    size = -(-values.nbytes // page) * page
    fd = os.memfd_create("hotcold-guard")
    os.ftruncate(fd, size + page)
    memory = mmap.mmap(fd, size + page)
    os.ftruncate(fd, size)  # beyond this, an access is SIGBUS
    os.close(fd)
    _maps.append(memory)
    flat = np.frombuffer(memory, values.dtype, values.size, size - values.nbytes)
    flat[:] = values.ravel()
    return flat.reshape(values.shape)


def stored(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> tuple[Array, Array]:
    """Random weights as stored (bfloat16 as uint16), and their exact values in float64."""
    values = rng.standard_normal(shape).astype(np.float32)
    if dtype == "bfloat16":
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
    kept = values.astype(RAW_TYPES[dtype])
    return kept, to_float32(kept, dtype).astype(np.float64)


def weights(rng: np.random.Generator, n: int, d: int, dtype: str) -> tuple[Array, Array]:
    """Random rows of d weights as stored, int8 with its scales, and their values; guarded."""
    if dtype != "int8":
        kept, exact = stored(rng, (n, d), dtype)
        return guarded(kept), exact
    raw = STORED[dtype].pack(rng.standard_normal((n, d)).astype(np.float32), "float32")
    return guarded(raw.view(np.int8)), STORED[dtype].unpack(raw, d).astype(np.float64)


def inputs(rng: np.random.Generator, batch: int, d: int) -> Array:
    """Random tokens."""
    return guarded(rng.standard_normal((batch, d)).astype(np.float32))


def compare(what: str, got: Array, exact: Array, allowed: Array | float) -> None:
    """Refuse what is further from exact than allowed, or not a number."""
    error = np.abs(got.astype(np.float64) - exact)
    bad = ~(error <= allowed)
    if bad.any():
        at = int(np.argmax(np.where(np.isnan(error), np.inf, error) * bad))
        limit = float(np.broadcast_to(allowed, error.shape).ravel()[at])
        raise Wrong(
            f"{what} gives {got.ravel()[at]:.7g} where float64 gives {exact.ravel()[at]:.7g}; "
            f"an error of {limit:.1g} is allowed"
        )


def equal(what: str, got: Array, first: Array, where: str = "in dot and dot_batch") -> None:
    """Refuse results that are not the same to the last bit."""
    if not np.array_equal(got, first, equal_nan=True):
        raise Wrong(f"{what}: the sum over a row must have one order {where}")


def check_gemv(dtype: str, d: int) -> None:
    """Dots: right, and the same for a row or a token alone."""
    rng = np.random.default_rng(d)
    for rows, batch in ((1, 1), (13, 1), (13, 2), (6, 5), (3, 32)):
        case = f"dot, {dtype}, d {d}, {rows} rows, batch {batch}"
        print(case, flush=True)
        (w, w64), x = weights(rng, rows, d, dtype), inputs(rng, batch, d)
        got, x64 = kernels.gemv(w, x), x.astype(np.float64)
        compare(case, got, x64 @ w64.T, ROUNDING * (np.abs(x64) @ np.abs(w64).T) + 1e-30)
        alone = np.concatenate([kernels.gemv(w, x[b : b + 1]) for b in range(batch)])
        equal(f"{case}, a token differs alone and in the batch", got, alone)
        one = np.concatenate([kernels.gemv(w[r : r + 1], x) for r in range(rows)], axis=1)
        equal(f"{case}, a row differs alone and among others", got, one)


def check_halves(dtype: str) -> None:
    """Every 16-bit weight is converted exactly."""
    print(f"dot, {dtype}, every weight there is", flush=True)
    bits = np.arange(1 << 16, dtype=np.uint16)
    all_ = bits.view(RAW_TYPES[dtype])
    values = to_float32(all_, dtype)
    kept = np.isfinite(values)
    got = kernels.gemv(all_[kept].reshape(-1, 1), np.ones((1, 1), np.float32))[0]
    compare(f"dot, {dtype}, one weight", got, values[kept].astype(np.float64), 0.0)


def check_ffn(dtype: str, d: int) -> None:
    """The sparse operator, so axpy too: right, and the same in any batch and on two threads."""
    rng = np.random.default_rng(d + 1)
    n, batch = 67, 5
    case = f"axpy in the sparse FFN, {dtype}, d {d}, batch {batch}"
    print(case, flush=True)
    (w, w64), x = weights(rng, 3 * n, d, dtype), inputs(rng, batch, d)
    w = w.reshape(n, -1)
    ids = np.flatnonzero(rng.random(n) < 0.7).astype(np.int32)
    gate, up, down = (w64[k::3][ids] for k in range(3))
    x64 = x.astype(np.float64)
    hidden = np.maximum(x64 @ gate.T, 0) * (x64 @ up.T)
    # What rounding may do to gate . x and up . x, carried through the product.
    size = (np.abs(x64) @ np.abs(gate).T) * (np.abs(x64) @ np.abs(up).T)
    got = kernels.ffn(w, ids, x).y_BD
    compare(case, got, hidden @ down, 4 * ROUNDING * (size @ np.abs(down)) + 1e-30)
    alone = np.concatenate([kernels.ffn(w, ids, x[b : b + 1]).y_BD for b in range(batch)])
    equal(f"{case}, a token differs alone and in the batch", got, alone)
    with kernels.Pool(2) as pool:
        equal(f"{case}, two threads differ from one", kernels.ffn(w, ids, x, pool=pool).y_BD, got)


def check_attention(head_dim: int) -> None:
    """Scores, maximum, sum of exponentials and the weighted sum."""
    rng = np.random.default_rng(head_dim)
    for length in (1, 5, 64, 131):
        case = f"max and exp_sum in attention, {length} positions, head_dim {head_dim}"
        print(case, flush=True)
        q = guarded(3 * rng.standard_normal((1, 2, head_dim)).astype(np.float32))
        k, v = (
            guarded(rng.standard_normal((1, 1, length, head_dim)).astype(np.float32))
            for _ in range(2)
        )
        got = kernels.attention(q, k, v, np.array([length - 1], np.int32))[0]
        scores = q[0].astype(np.float64) @ k[0, 0].astype(np.float64).T / math.sqrt(head_dim)
        share = np.exp(scores - scores.max(axis=1, keepdims=True))
        exact = share / share.sum(axis=1, keepdims=True) @ v[0, 0].astype(np.float64)
        compare(case, got, exact, 5e-5 * float(np.abs(v).max()))


def check_sampling() -> None:
    """exp_sum over a vocabulary, and max with a NaN."""
    print("exp_sum over 5003 logits", flush=True)
    logits = guarded((8 * np.random.default_rng(3).standard_normal(5003)).astype(np.float32))
    best, logprob = kernels.sample(logits, Sampling())
    wide = logits.astype(np.float64)
    exact = wide.max() - math.log(np.exp(wide - wide.max()).sum()) - wide.max()
    compare("exp_sum over 5003 logits", np.array([logprob]), np.array([exact]), 1e-4)
    if best != int(np.argmax(logits)):
        raise Wrong(f"max chooses logit {best}, the highest is {int(np.argmax(logits))}")


def check_signs() -> None:
    """sign_count: whole numbers, so results must be equal."""
    rng = np.random.default_rng(7)
    for d, bits in itertools.product((1, 63, 64, 320, 1040), (1, 6, 8)):
        case = f"sign_count, d {d}, {bits} planes"
        print(case, flush=True)
        signs = rng.integers(0, 2, (13, d))
        padded = np.zeros((13, -(-d // 64) * 64), np.uint8)
        padded[:, :d] = signs
        words = guarded(np.packbits(padded, axis=1, bitorder="little").view(np.uint64))
        levels = rng.integers(0, 1 << bits, d)
        levels[0] = (1 << bits) - 1  # the largest magnitude, which sets the step
        odd = 2 * levels - ((1 << bits) - 1)
        x = (odd / odd[0]).astype(np.float32)[None] * (1 - 2.0**-bits)
        # The largest is half a step inside its level's end; steps are then exactly those of odd.
        x[0, 0] = 1
        got = kernels.sign(
            words, np.ones(13, np.float32), guarded(x.astype(np.float32)), input_bits=bits
        )[0]
        compare(case, got * (1 << bits), (2.0 * signs - 1) @ odd, 0.0)


def check_all() -> None:
    """Every case; Wrong says which result is wrong first."""
    for dtype, d in itertools.product(FORMATS, WIDTHS):
        check_gemv(dtype, d)
        check_ffn(dtype, d)
    for dtype in WEIGHT_DTYPES[1:]:
        check_halves(dtype)
    for head_dim in (1, 24, 64):
        check_attention(head_dim)
    check_sampling()
    check_signs()


def main(library: str, name: str, check: Callable[[], None] = check_all) -> None:
    """Load a compiled variant, check it, and end the process: 0, or 1 and the reason."""
    try:
        load_cpu_variant(library, name)
        kernels.force_cpu_variant(name)
        check()
    except (HotcoldError, Wrong) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)
    # The maps are cut short on purpose; they must not be read again.
    sys.stdout.flush()
    os._exit(0)
