"""Operators made ready to be timed: arguments set up once, one call into C between two clock reads.

Called by runtime/bench/kernels.py, which chooses what to touch and when. Data is given by address,
so that one large buffer can be every operator's weights in turn; the caller keeps it alive.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.names import DTYPE_BYTES, DTYPES
from hotcold.native.bindings._arrays import F32, I32, ffn_scratch, handle
from hotcold.native.bindings._ffi import check, ffi, lib, pointer
from hotcold.native.bindings.pool import CPointer, Pool
from hotcold.native.errors import ConfigError


def _timed(function: Callable[..., int], args: CPointer, pool: CPointer) -> float:
    """Seconds of one call."""
    begin = time.perf_counter_ns()
    status = function(args, pool)
    seconds = (time.perf_counter_ns() - begin) * 1e-9
    check(status)
    return seconds


class TimedRead:
    """hc_read: rows alone, the yardstick.

    Args:
        stride_bytes: from a row to the next id's row.
        row_bytes: read of each, a multiple of 64.
        side: rows read side by side: 1, 4 or 8.
        pool: threads, or None.
    """

    def __init__(self, stride_bytes: int, row_bytes: int, side: int, pool: Pool | None) -> None:
        self._args, self._pool = ffi.new("hc_read_args *"), handle(pool)
        self._args.stride_bytes, self._args.row_bytes = stride_bytes, row_bytes
        self._args.side = side

    def __call__(self, base: int, ids: I32) -> tuple[float, int]:
        """Seconds and bytes of reading rows ids from an address."""
        self._args.base = ffi.cast("void *", base)
        self._args.ids, self._args.n = pointer(ids, "int32_t *"), ids.size
        return _timed(lib.hc_read, self._args, self._pool), ids.size * int(self._args.row_bytes)


class TimedFfn:
    """hc_ffn on records of 3 d weights, one token.

    Args:
        d: weights of a row.
        n: neurons of a layer.
        dtype: "float32", "float16" or "bfloat16".
        x: the token, float32 [d].
        pool: threads, or None.
    """

    def __init__(self, d: int, n: int, dtype: str, x: F32, pool: Pool | None) -> None:
        args, size = ffi.new("hc_ffn_args *"), DTYPE_BYTES[dtype]
        self._args, self._pool = args, handle(pool)
        self._keep: list[NDArray[Any]] = [x]
        args.record_bytes, args.d, args.batch = 3 * d * size, d, 1
        args.gate_offset, args.up_offset, args.down_offset = 0, d * size, 2 * d * size
        args.dtype, args.n, args.x_BD = DTYPES[dtype], n, pointer(x, "float *")
        args.y_BD = self._scratch(np.empty(d, np.float32), "float *")
        args.scratch = self._scratch(ffn_scratch(n, 1), "void *")

    def _scratch(self, array: NDArray[Any], ctype: str) -> Any:  # noqa: ANN401 - a C pointer
        self._keep.append(array)
        return pointer(array, ctype)

    def __call__(self, base: int, ids: I32) -> tuple[float, int]:
        """Seconds and bytes touched of the layer whose records lie at an address."""
        self._args.records = ffi.cast("void *", base)
        self._args.ids, self._args.n_ids = pointer(ids, "int32_t *"), ids.size
        return _timed(lib.hc_ffn, self._args, self._pool), int(self._args.bytes)


class TimedGemv:
    """hc_gemv on rows of d weights, one token.

    Args:
        rows: rows of the matrix.
        d: weights of a row.
        dtype: "float32", "float16" or "bfloat16".
        x: the token, float32 [d].
        pool: threads, or None.
    """

    def __init__(self, rows: int, d: int, dtype: str, x: F32, pool: Pool | None) -> None:
        args = ffi.new("hc_gemv_args *")
        self._args, self._pool, self._bytes = args, handle(pool), rows * d * DTYPE_BYTES[dtype]
        y = np.empty(rows, np.float32)
        self._keep = [x, y]
        args.stride_bytes, args.rows, args.d = d * DTYPE_BYTES[dtype], rows, d
        args.dtype, args.batch, args.x_stride, args.y_stride = DTYPES[dtype], 1, d, rows
        args.x_BD, args.y_BR = pointer(x, "float *"), pointer(y, "float *")

    def __call__(self, base: int, ids: I32) -> tuple[float, int]:
        """Seconds and bytes of the matrix at an address; ids are not used."""
        self._args.w = ffi.cast("void *", base)
        return _timed(lib.hc_gemv, self._args, self._pool), self._bytes


class TimedAttention:
    """hc_attention of one token to a full fp32 cache, keys first, then values.

    Args:
        heads: query heads, each with keys and values of its own.
        head_dim: floats of a head.
        context: positions.
        q: the queries, float32 [heads * head_dim].
        pool: threads, or None.
    """

    def __init__(self, heads: int, head_dim: int, context: int, q: F32, pool: Pool | None) -> None:
        if q.size != heads * head_dim:
            raise ConfigError(f"q has {q.size} entries, {heads * head_dim} are needed")
        args = ffi.new("hc_attention_args *")
        self._args, self._pool = args, handle(pool)
        self._part = heads * context * head_dim * 4
        threads = 1 if pool is None else pool.threads
        scores, out = np.empty(threads * context, np.float32), np.empty_like(q)
        position = np.array([context - 1], np.int32)
        self._keep: list[NDArray[Any]] = [q, scores, out, position]
        args.q, args.q_stride, args.batch, args.context = pointer(q, "float *"), q.size, 1, context
        args.heads, args.kv_heads, args.head_dim = heads, heads, head_dim
        args.position_B = pointer(position, "int32_t *")
        args.scores, args.out = pointer(scores, "float *"), pointer(out, "float *")

    def __call__(self, base: int, ids: I32) -> tuple[float, int]:
        """Seconds and bytes of the caches at an address; ids are not used."""
        self._args.k_cache = ffi.cast("float *", base)
        self._args.v_cache = ffi.cast("float *", base + self._part)
        return _timed(lib.hc_attention, self._args, self._pool), 2 * self._part
