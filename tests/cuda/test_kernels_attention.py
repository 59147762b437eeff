"""Decode attention on the GPU against numpy in float64, and that a token's bits are its own.

A context of more than a piece of 256 positions takes another way through the kernel than a shorter
one.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernels import SMALL, guarded, some

from hotcold.native.bindings import device_kernels as kernels

pytestmark = pytest.mark.gpu

# heads, key heads, head_dim: groups of 1, 2, 4, 5, 7 and 8, every width a lane can have
SHAPES = [(5, 1, 6), (4, 4, 64), (8, 2, 128), (2, 1, 256), (14, 2, 80), (8, 1, 128), (3, 3, 192)]
BEFORE = [0, 3, 200, 254, 1300]
WINDOWS = [0, 1, 5, 250, 600]  # 0: none; less than a pass, less than a piece, more than two
KV = ["float32", "float16"]


@pytest.fixture(scope="module")
def plugin(plugin: Any) -> Any:
    return guarded(plugin)


class Tokens:
    """Random tokens of one sequence behind `before` others, and what attention makes of them."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        before: int,
        batch: int,
        kv: str,
        rotary: bool,
        window: int = 0,
    ) -> None:
        self.window = window
        self.heads, self.kv_heads, self.hd = shape
        rng = np.random.default_rng(before + batch + self.hd)
        self.before, self.half, self.rotary = before, self.hd // 2, rotary
        rows = self.heads + 2 * self.kv_heads
        self.qkv = rng.standard_normal((batch, rows * self.hd)).astype(np.float32)
        past = (2, self.kv_heads, before, self.hd)
        self.past = rng.standard_normal(past).astype(kv)
        angles = rng.uniform(0, 6, (before + batch, self.half))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def run(
        self, plugin: Any, tokens: slice, past: NDArray[Any], context: int
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Output of some tokens behind `past`, and both caches; memory behind them is no number."""
        qkv, n = self.qkv[tokens].copy(), past.shape[2]
        caches = np.full((2, self.kv_heads, context, self.hd), np.nan, past.dtype)
        caches[:, :, :n] = past
        tables = [np.zeros((context, self.half), np.float32) for _ in range(2)]
        for table, known in zip(tables, (self.cos, self.sin), strict=True):
            table[: len(known)] = known[:context]
        positions = np.arange(n, n + len(qkv), dtype=np.int32)
        given = tables if self.rotary else (None, None)
        more = {"window": self.window}
        out, _ = kernels.attention(plugin, qkv, *caches, self.heads, positions, *given, **more)
        return out, caches

    def turned(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Heads [B, heads, hd] of all tokens, rotated by their positions."""
        if not self.rotary:
            return x
        c, s = (table[self.before :, None].astype(float) for table in (self.cos, self.sin))
        low, high = x[..., : self.half], x[..., self.half :]
        return np.concatenate([low * c - high * s, high * c + low * s], axis=-1)

    def expected(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        """Output in float64, and both caches as they are stored."""
        parts = self.qkv.astype(np.float64).reshape(len(self.qkv), -1, self.hd)
        q, k, v = np.split(parts, [self.heads, self.heads + self.kv_heads], axis=1)
        fresh = np.stack([self.turned(k), v]).transpose(0, 2, 1, 3)
        caches = np.concatenate([self.past, fresh.astype(self.past.dtype)], axis=2)
        keys, values = caches.astype(np.float64)
        q, out = self.turned(q), np.zeros(q.shape)
        for b in range(len(q)):
            n = self.before + b + 1
            seen = slice(max(0, n - self.window) if self.window else 0, n)
            for head in range(self.heads):
                at = head // (self.heads // self.kv_heads)
                scores = keys[at, seen] @ q[b, head] / np.sqrt(self.hd)
                p = np.exp(scores - scores.max())
                out[b, head] = p / p.sum() @ values[at, seen]
        return out.reshape(len(q), -1), caches


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("batch", some([1, 2, 5, 32], 0, 2))
@pytest.mark.parametrize("shape", some(SHAPES, 0, 2))
@pytest.mark.parametrize("before", some(BEFORE, 1, 3))
def test_attention(
    plugin: Any, batch: int, shape: tuple[int, int, int], before: int, rotary: bool, kv: str
) -> None:
    heads, kv_heads, hd = shape
    hd -= not rotary  # an odd length, where nothing turns in pairs
    tokens = Tokens((heads, kv_heads, hd), before, batch, kv, rotary)
    end = before + batch
    found, caches = tokens.run(plugin, slice(None), tokens.past, end + 3)
    expected, stored = tokens.expected()
    assert np.isfinite(found).all()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (1e-5 if kv == "float32" else 3e-4)  # a half may round the other way
    np.testing.assert_array_equal(caches[:, :, :before], tokens.past)
    np.testing.assert_allclose(
        caches[:, :, before:end].astype(float),
        stored[:, :, before:].astype(float),
        *((1e-5, 1e-5) if kv == "float32" else (1e-3, 1e-3)),
    )
    assert np.isnan(caches[:, :, end:]).all()


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("shape", some(SHAPES, 2))
@pytest.mark.parametrize("before", some([0, 240, 2000], 1))
def test_a_token_gets_the_same_bits_alone_and_in_any_context(
    plugin: Any, shape: tuple[int, int, int], before: int, kv: str
) -> None:
    tokens = Tokens(shape, before, 32, kv, rotary=True)
    whole, caches = tokens.run(plugin, slice(None), tokens.past, before + 32)
    for first, count in ((0, 1), (3, 2), (15, 1), (16, 11), (31, 1)):
        past = caches[:, :, : before + first]
        for context in (before + 32, before + 900):
            part, _ = tokens.run(plugin, slice(first, first + count), past, context)
            np.testing.assert_array_equal(part, whole[first : first + count])


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("batch", some([1, 5, 32], 1))
@pytest.mark.parametrize("shape", some(SHAPES[1:], 1, 4))
@pytest.mark.parametrize("before", some(BEFORE, 3, 4))
@pytest.mark.parametrize("window", some(WINDOWS[1:], 1, 3))
def test_a_window(
    plugin: Any, batch: int, shape: tuple[int, int, int], before: int, window: int, kv: str
) -> None:
    tokens = Tokens(shape, before, batch, kv, True, window)
    # What lies before the pieces of the first window is never read: it is no number here.
    unread = max(0, before + 1 - window) // 256 * 256
    tokens.past[:, :, :unread] = np.nan
    found, caches = tokens.run(plugin, slice(None), tokens.past, before + batch + 3)
    assert np.isfinite(found).all()
    expected, _ = tokens.expected()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (1e-5 if kv == "float32" else 3e-4)
    alone, _ = tokens.run(
        plugin, slice(batch - 1, batch), caches[:, :, : before + batch - 1], before + batch + 900
    )
    np.testing.assert_array_equal(alone[0], found[-1])


@pytest.mark.parametrize("shape", some(SHAPES[1:], 1))
def test_a_window_of_the_whole_context_changes_no_bit(
    plugin: Any, shape: tuple[int, int, int]
) -> None:
    found = []
    for window in (0, 1305):
        tokens = Tokens(shape, 1300, 5, "float16", True, window)
        found.append(tokens.run(plugin, slice(None), tokens.past, 1310)[0])
    np.testing.assert_array_equal(*found)


def test_a_long_context_is_no_limit(plugin: Any) -> None:
    """More positions than scores would fit any shared memory, and more pieces than blocks."""
    before = 3000 if SMALL else 150_000
    tokens = Tokens((4, 2, 16), before, 2, "float16", rotary=True)
    found, _ = tokens.run(plugin, slice(None), tokens.past, before + 2)
    expected, _ = tokens.expected()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 3e-4


def test_an_infinite_value_spoils_the_tokens_that_see_it_alone(plugin: Any) -> None:
    tokens = Tokens((8, 8, 64), 40, 4, "float32", rotary=False)
    tokens.qkv[2, -1] = np.inf
    found, _ = tokens.run(plugin, slice(None), tokens.past, 50)
    assert np.isfinite(found[:2]).all()
    assert np.isinf(found[2:, -1]).all()
