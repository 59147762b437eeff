"""The oracle test of a CUDA kernel file: every operator with it against numpy in float64.

Runs as a process of its own, started by `cuda_variant.py`, as variant_check does for C files: it
prints each case before it computes it and ends with the first error as its last line. Every array
on the device is followed by NaNs, so a kernel that reads too far gives wrong results (or the driver
reports it, and the process ends). Whole passes come last (cuda_variant_passes.py).
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import ACTIVATION_ROWS, ActivationRow
from hotcold.native.abi.names import ACTIVATIONS, WEIGHT_DTYPES
from hotcold.native.bindings import device_kernels as kernels
from hotcold.native.bindings.device import open_plugin
from hotcold.native.errors import HotcoldError
from hotcold.runtime.engine.variant import Variant
from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.offline.kernel_checks.cuda_variant_passes import check_passes
from hotcold.runtime.offline.kernel_checks.variant_check import Array, Wrong, compare, equal, stored

WIDTHS = (7, 64, 320, 1040, 5120)
BATCHES = (1, 2, 5, 32)
ROUNDING = 4e-6  # of the sum of the terms' magnitudes: float32 sums
IN_BATCHES = "whatever the batch"


def check_gemv(plugin: Any, dtype: str, d: int, batch: int) -> None:
    """Plain, normed, added to, clamped and with a bias."""
    rng = np.random.default_rng(d + batch)
    case = f"gemv, {dtype}, d {d}, batch {batch}"
    print(case, flush=True)
    w, w64 = stored(rng, (37, d), dtype)
    x = rng.standard_normal((batch, d)).astype(np.float32)
    bias, before = (rng.standard_normal(s).astype(np.float32) for s in (37, (batch, 37)))
    size = ROUNDING * (np.abs(x) @ np.abs(w64).T + 1)
    plain, _ = kernels.gemv(plugin, w, dtype, x)
    compare(case, plain, x @ w64.T, size)
    alone, _ = kernels.gemv(plugin, w, dtype, x[-1:].copy())
    equal(f"{case}, a token differs alone", plain[-1:], alone, IN_BATCHES)
    more: tuple[tuple[str, dict[str, Any], Array], ...] = (
        ("with a bias", {"bias_R": bias}, x @ w64.T + bias),
        ("added to y", {"add_to": before}, x @ w64.T + before),
        ("clamped", {"relu": True}, np.maximum(x @ w64.T, 0)),
    )
    for words, how, exact in more:
        compare(f"{case}, {words}", kernels.gemv(plugin, w, dtype, x, **how)[0], exact, size)
    weight = (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    x64 = x.astype(np.float64)
    normed = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    got, _ = kernels.gemv(plugin, w, dtype, x, norm_D=weight)
    compare(f"{case}, normed", got, normed @ w64.T, 4 * ROUNDING * (np.abs(normed) @ np.abs(w64).T))


def check_norm(plugin: Any, kind: str, d: int, batch: int) -> None:
    """Both kinds of norm."""
    rng = np.random.default_rng(d + batch)
    print(f"{kind} norm, d {d}, batch {batch}", flush=True)
    x = (2 + rng.standard_normal((batch, d))).astype(np.float32)
    weight, bias = rng.standard_normal((2, d)).astype(np.float32)
    x64 = x.astype(np.float64)
    if kind == "rms":
        exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * weight
        got = kernels.norm(plugin, x, weight, kind="rms")
    else:
        x64 -= x64.mean(axis=1, keepdims=True)
        exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * weight + bias
        got = kernels.norm(plugin, x, weight, bias)
    compare(f"{kind} norm, d {d}, batch {batch}", got, exact, 1e-4)


def check_ffn(
    plugin: Any, dtype: str, d: int, batch: int, gated: bool, activation: str = "relu"
) -> None:
    """gate_up and down over a list, over all rows, and a token alone."""
    rng = np.random.default_rng(d + batch + gated)
    kind = f"{'gated' if gated else 'plain'} {activation}"
    case = f"{kind} ffn, {dtype}, d {d}, batch {batch}"
    print(case, flush=True)
    rows, parts = 83, 3 if gated else 2
    values, form = rng.standard_normal((parts, rows, d)).astype(np.float32), STORED[dtype]
    raw = [form.pack(part, "float32") for part in values]
    w64 = np.stack([form.unpack(part, d).astype(np.float64) for part in raw], axis=1)
    at = parts * raw[0].shape[1]
    records = np.zeros((rows, -(-(at + 4) // 64) * 64), np.uint8)
    records[:, :at] = np.concatenate(raw, axis=1)
    bias = np.zeros(rows, np.float32) if gated else rng.standard_normal(rows).astype(np.float32)
    records[:, at : at + 4] = bias.view(np.uint8).reshape(rows, 4)
    how: dict[str, Any] = {"gated": gated, "bias": 0 if gated else at}
    x = rng.standard_normal((batch, d)).astype(np.float32)
    act = ACTIVATION_ROWS[ACTIVATIONS[activation]]
    gates = np.sort(x @ w64[:, 0].T + bias, axis=None)
    high = gates[gates.size * 3 // 4 :]
    widest = int(np.argmax(np.diff(high)))  # no pre-activation is next to the threshold
    threshold = float((high[widest] + high[widest + 1]) / 2) if activation == "fatrelu" else 0.0
    how |= {"activation": activation, "threshold": threshold}
    bounds = np.linspace(0, rows, 6).astype(np.int32)
    members = rng.integers(1, 2**batch, rows, dtype=np.uint64).astype(np.uint32)
    ids = np.flatnonzero(rng.random(rows) < 0.6).astype(np.int32)
    on_BN = (members[None] >> np.arange(batch, dtype=np.uint32)[:, None] & 1).astype(bool)
    on_BN[:, np.setdiff1d(np.arange(rows), ids)] = False
    up64 = w64[:, 1] if gated else None
    for words, on, chosen in ((", a list", on_BN, ids), (", all rows", on_BN | True, None)):
        given = () if chosen is None else (chosen, members[chosen])
        got, _, _ = kernels.ffn(plugin, records, dtype, x, bounds, *given, **how)
        exact, size = _ffn(x, w64[:, 0], bias, up64, w64[:, -1], on, act, threshold)
        compare(case + words, got, exact, 8 * ROUNDING * size + 1e-6)
    own = np.flatnonzero(on_BN[-1]).astype(np.int32)
    ones, last = np.ones(len(own), np.uint32), x[-1:].copy()
    alone, _, _ = kernels.ffn(plugin, records, dtype, last, bounds, own, ones, **how)
    whole, _, _ = kernels.ffn(plugin, records, dtype, x, bounds, ids, members[ids], **how)
    equal(f"{case}, a token differs alone", whole[-1:], alone, IN_BATCHES)


def _ffn(
    x: Array,
    gate: Array,
    bias: Array,
    up: Array | None,
    down: Array,
    on: Array,
    act: ActivationRow,
    threshold: float,
) -> tuple[Array, Array]:
    gates = x @ gate.T + bias
    c = act.value(gates) * act.fires(gates, threshold) * on
    size = act.value(np.abs(x) @ np.abs(gate).T + np.abs(bias)) * on
    if up is not None:
        ups = x @ up.T
        c = c * (np.maximum(ups, 0) if act.both else ups)
        size = size * (np.abs(x) @ np.abs(up).T)
    return c @ down, size @ np.abs(down)


def check_attention(
    plugin: Any, heads: int, kv_heads: int, head_dim: int, batch: int, window: int
) -> None:
    """Without rotation, 40 positions before; what is appended to the caches too."""
    case = f"attention, {heads}/{kv_heads} heads of {head_dim}, batch {batch}, window {window}"
    print(case, flush=True)
    rng, before = np.random.default_rng(head_dim + batch), 40
    shape = (kv_heads, before + batch + 2, head_dim)
    qkv = rng.standard_normal((batch, (heads + 2 * kv_heads) * head_dim)).astype(np.float32)
    k_cache, v_cache = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    q, k, v = np.split(qkv.reshape(batch, -1, head_dim), [heads, heads + kv_heads], axis=1)
    keys, values = (cache.astype(np.float64) for cache in (k_cache, v_cache))
    keys[:, before : before + batch] = k.swapaxes(0, 1)
    values[:, before : before + batch] = v.swapaxes(0, 1)
    positions = np.arange(before, before + batch, dtype=np.int32)
    given = (qkv, k_cache, v_cache, heads, positions, None, None)
    got, _ = kernels.attention(plugin, *given, window=window)
    exact = np.zeros((batch, heads, head_dim))
    for b, head in itertools.product(range(batch), range(heads)):
        at, n = head // (heads // kv_heads), before + b + 1
        seen = slice(max(0, n - window) if window else 0, n)
        scores = keys[at, seen] @ q[b, head].astype(np.float64) / np.sqrt(head_dim)
        share = np.exp(scores - scores.max())
        exact[b, head] = share / share.sum() @ values[at, seen]
    compare(case, got, exact.reshape(batch, -1), 1e-4)
    compare(f"{case}, keys", k_cache, keys, 0.0)
    compare(f"{case}, values", v_cache, values, 0.0)


def check_all(plugin: Any) -> None:
    """Every case; Wrong says which result is wrong first."""
    for dtype, d, batch in itertools.product(FORMATS, WIDTHS, BATCHES):
        for gated in (True, False):
            check_ffn(plugin, dtype, d, batch, gated)
        for activation in ACTIVATIONS if d == 64 else ():
            check_ffn(plugin, dtype, d, batch, True, activation)
        if dtype in WEIGHT_DTYPES:
            check_gemv(plugin, dtype, d, batch)
    for kind, d, batch in itertools.product(("rms", "layer"), WIDTHS, BATCHES):
        check_norm(plugin, kind, d, batch)
    shapes = ((5, 1, 7), (4, 4, 64), (8, 2, 128))
    for shape, batch, window in itertools.product(shapes, BATCHES, (0, 9)):
        check_attention(plugin, *shape, batch, window)


def main(plugin: str, library: str, source: str, digest: str) -> None:
    """Check a compiled variant on a plug-in, and end the process: 0, or 1 and the reason."""
    try:
        check_all(kernels.Fitted(open_plugin(Path(plugin)), Path(library)))
        check_passes(Variant(source, digest))
    except (HotcoldError, Wrong) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)
