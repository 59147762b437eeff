"""bench kernels on a GPU: bytes a second of every operator on one token, beside a dense product's.

Attention is timed on shapes of its own, whatever the widths asked for: its bytes are the cache's.
The yardstick is a matrix of 1/3 GB times one token, the fastest way this plug-in reads. Weights lie
in rotating copies that together are several times the GPU's cache, and a timed round visits each
once; the figure is the median round. With a variant (cuda_variant.py) the same with its kernels.
A sparse operator's bytes are those of the rows it must read, scales included; its time includes the
merge. int8 is of neurons alone: matrices are float16 then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import HOT_CHUNKS
from hotcold.native.bindings import device_kernels
from hotcold.native.bindings.device import open_plugin
from hotcold.native.errors import BackendError, ConfigError
from hotcold.native.gpu import cuda_plugin
from hotcold.runtime.bench.kernels import HEAD_DIM, USUAL, Settings
from hotcold.runtime.bench.nested import found, put

COLD_BYTES = 256 << 20  # what a round touches at least: five caches of an H100
MAX_BYTES = 4 << 30  # and what all copies may take
READ_ROWS, READ_WIDTH = 32768, 5120
HEADS = ((40, 40), (32, 8))  # of 128 elements, and key heads: 13B, and a model of grouped queries
CONTEXTS = (128, 1024, 4096)
KV_DTYPES = ("float32", "float16")
Time = Callable[[Any, int], float]  # (plug-in, repeats) -> seconds of a launch


@dataclass(frozen=True)
class GpuCase:
    """One operator on one shape: how to time it, and the bytes it must read."""

    time: Time
    bytes: int


def measure(
    settings: Settings,
    variant: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure every case on the first GPU; nested plain data, units in the names.

    `variant`, the library of a tested CUDA variant, is timed beside the built-in kernels.

    Raises:
        BackendError: there is no GPU, or no plug-in for it.
        ConfigError: a width whose layer is too large.
    """
    there = cuda_plugin.find()
    if there is None:
        raise BackendError("there is no GPU that can be used here; `hotcold doctor` says why")
    plugin = open_plugin(there.path)
    progress("a dense product")
    read = _dense(_matrices(settings), READ_WIDTH, READ_ROWS)
    rate = read.bytes / read.time(plugin, settings.samples) / 1e9
    result: dict[str, Any] = {"device": "gpu", "dtype": settings.dtype, "read_gb_per_s": rate}
    for name, path, case in gpu_cases(settings):
        progress(f"{name} {' '.join(path)}")
        figures = _figures(case, case.time(plugin, settings.samples), rate)
        if variant is not None:
            mine = device_kernels.Fitted(plugin, variant)
            figures["variant"] = _figures(case, case.time(mine, settings.samples), rate)
            figures["variant_speedup"] = figures["time_s"] / figures["variant"]["time_s"]
        put(result, (name, *path), figures)
    return result


def _figures(case: GpuCase, seconds: float, rate: float) -> dict[str, Any]:
    speed = case.bytes / seconds / 1e9
    return {
        "time_s": seconds,
        "bytes": case.bytes,
        "gb_per_s": speed,
        "bandwidth_fraction": speed / rate,
    }


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Table rows: case, kernels, microseconds, GB/s, fraction."""
    for path, value in found(result, "time_s"):
        for kind, one in (("built-in", value), ("variant", value.get("variant"))):
            if one is not None:
                numbers = f"{one['time_s'] * 1e6:.1f}", f"{one['gb_per_s']:.0f}"
                yield (" ".join(path), kind, *numbers, f"{one['bandwidth_fraction']:.2f}")


def gpu_cases(settings: Settings) -> Iterator[tuple[str, tuple[str, ...], GpuCase]]:
    """Name, path and case of all that is asked for."""
    for d in settings.widths:
        for name in settings.cases:
            if name in ("sparse_ffn", "gate_first"):
                for density in settings.densities:
                    case = _ffn(settings.dtype, d, density, name == "sparse_ffn")
                    yield name, (f"d{d}", f"density{density}"), case
            elif name == "gemv":
                yield name, (f"d{d}",), _dense(_matrices(settings), d, d)
    if "attention" in settings.cases:
        for heads, kv in product(HEADS, KV_DTYPES):
            for context in CONTEXTS:
                path = (f"heads{heads[0]}/{heads[1]}", kv, f"context{context}")
                yield "attention", path, _attention(*heads, kv, context)


def _matrices(settings: Settings) -> str:
    return "float16" if settings.dtype == "int8" else settings.dtype


def _weights(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    values = np.resize(
        np.random.default_rng(1).uniform(0.01, 0.03, 1 << 16).astype(np.float32), shape
    )
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def _copies(whole: int, touched: int) -> int:
    """How many copies make a round that touches enough; ConfigError where two are too much."""
    if 2 * whole > MAX_BYTES:
        raise ConfigError(
            f"a layer of {whole} bytes is too large to keep copies of on the GPU; give a smaller "
            "--d"
        )
    return max(2, min(-(-COLD_BYTES // max(1, touched)), MAX_BYTES // whole))


def _x(d: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).uniform(0.005, 0.015, (1, d)).astype(np.float32)


def _dense(dtype: str, d: int, n_rows: int) -> GpuCase:
    w_RD, x_BD = _weights((n_rows, d), dtype), _x(d)
    copies = _copies(w_RD.nbytes, w_RD.nbytes)

    def time(plugin: Any, repeat: int) -> float:
        return device_kernels.gemv(plugin, w_RD, dtype, x_BD, repeat=repeat, copies=copies)[1]

    return GpuCase(time, w_RD.nbytes)


def _ffn(dtype: str, d: int, density: int, listed: bool) -> GpuCase:
    """A list of neurons that all fire, or all neurons looked at and a share of the gates firing."""
    n = min(4 * d, 16384)
    rng = np.random.default_rng(d + density)
    fires_N = rng.permutation(n) < max(1, round(n * density / 100))
    data, x_BD = made_records(n, d, dtype, np.ones(n, bool) if listed else fires_N), _x(d)
    row, fired = FORMATS[dtype].read_bytes(d), int(fires_N.sum())
    size = fired * 3 * row if listed else n * row + fired * 2 * row
    ids = np.flatnonzero(fires_N).astype(np.int32)
    members = np.ones(len(ids), np.uint32)
    bounds_C = np.linspace(0, n, HOT_CHUNKS + 1).astype(np.int32)
    copies = _copies(data.nbytes, size)

    def time(plugin: Any, repeat: int) -> float:
        a_list: dict[str, Any] = {"ids": ids, "members": members} if listed else {}
        return device_kernels.ffn(
            plugin, data, dtype, x_BD, bounds_C, repeat=repeat, copies=copies, **a_list
        )[2]

    return GpuCase(time, size)


def made_records(n: int, d: int, dtype: str, fires_N: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Gate, up and down side by side, [n, bytes of a record]; only gates of the marked fire."""
    of = FORMATS[dtype]
    if dtype == "int8":  # bytes that are small and positive, as weights and as either of a scale's
        data = np.resize(USUAL + np.arange(4, dtype=np.uint8), (n, 3 * of.part_bytes(d)))
        data[~fires_N, of.scales(d) : of.part_bytes(d)] |= 0x80
        return data
    records = _weights((n, 3 * d), dtype)
    records[~fires_N, 0] = 0xC61C if dtype == "bfloat16" else -1e4
    return records.view(np.uint8)


def _attention(heads: int, kv_heads: int, kv: str, context: int) -> GpuCase:
    width = (heads + 2 * kv_heads) * HEAD_DIM
    qkv_BQ = np.random.default_rng(3).standard_normal((1, width)).astype(np.float32)
    k_cache, v_cache = (_weights((kv_heads, context, HEAD_DIM), kv) for _ in range(2))
    position_B = np.array([context - 1], np.int32)
    size = 2 * k_cache.nbytes
    copies = _copies(size, size)

    def time(plugin: Any, repeat: int) -> float:
        return device_kernels.attention(
            plugin,
            *(qkv_BQ, k_cache, v_cache, heads, position_B, None, None),
            repeat=repeat,
            copies=copies,
        )[1]

    return GpuCase(time, size)
