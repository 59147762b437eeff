"""Operators made ready to be timed: arguments set up once, one call into C between two clock reads.

Called by runtime/bench/kernels.py, which chooses what to touch and when. Data is given by address,
so that one large buffer can be every operator's weights in turn; the caller keeps it alive.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import lines
from hotcold.native.bindings._arrays import F32, I32, ffn_args, ffn_scratch, handle
from hotcold.native.bindings._ffi import check, ffi, lib, new, pointer
from hotcold.native.bindings.pool import Pool
from hotcold.native.errors import ConfigError


@dataclass(frozen=True)
class Timed:
    """An operator that waits for the address of its data.

    points: fields that point into the data, and where to, in bytes. count: the field that says how
    many ids there are; "": it takes none. touched: bytes of a call, given args and ids.
    """

    function: Callable[..., int]
    args: Any
    pool: Pool | None
    points: dict[str, int]
    count: str
    touched: Callable[[Any, I32], int]

    def __call__(self, base: int, ids: I32) -> tuple[float, int]:
        """Seconds and bytes of one call on the data at an address, rows ids of it if any."""
        for name, offset in self.points.items():
            setattr(self.args, name, ffi.cast("void *", base + offset))
        if self.count:
            self.args.ids = pointer(ids, "int32_t *")
            setattr(self.args, self.count, ids.size)
        pool = handle(self.pool)
        begin = time.perf_counter_ns()
        status = self.function(self.args, pool)
        seconds = (time.perf_counter_ns() - begin) * 1e-9
        check(status)
        return seconds, self.touched(self.args, ids)


def timed_read(stride_bytes: int, row_bytes: int, side: int, pool: Pool | None) -> Timed:
    """hc_read: rows alone, the yardstick; row_bytes: a multiple of 64.

    side: rows read side by side: 1, 4 or 8.
    """
    args = new("hc_read_args", stride_bytes=stride_bytes, row_bytes=row_bytes, side=side)
    return Timed(lib.hc_read, args, pool, {"base": 0}, "n", lambda _, ids: ids.size * row_bytes)


def timed_ffn(d: int, n: int, dtype: str, x: F32, pool: Pool | None) -> Timed:
    """hc_ffn on n records of three rows of d weights in one of FORMATS; one token, x [d]."""
    record, y = lines(3 * FORMATS[dtype].part_bytes(d)), np.empty((1, d), np.float32)
    args = ffn_args(dtype, x.reshape(1, d), y, record, n=n, scratch=ffn_scratch(n, 1))
    return Timed(lib.hc_ffn, args, pool, {"records": 0}, "n_ids", lambda a, _: int(a.bytes))


def timed_gemv(rows: int, d: int, dtype: str, x: F32, pool: Pool | None) -> Timed:
    """hc_gemv on rows of d weights, one token; dtype and x as of timed_ffn."""
    row, y = lines(FORMATS[dtype].part_bytes(d)), np.empty(rows, np.float32)
    sizes = {"stride_bytes": row, "rows": rows, "d": d, "batch": 1, "dtype": dtype}
    sizes["scales"] = FORMATS[dtype].scales(d)
    args = new("hc_gemv_args", x_BD=x, x_stride=d, y_BR=y, y_stride=rows, **sizes)
    return Timed(lib.hc_gemv, args, pool, {"w": 0}, "", lambda *_: rows * row)


def timed_attention(heads: int, head_dim: int, context: int, q: F32, pool: Pool | None) -> Timed:
    """hc_attention of one token to a full fp32 cache, keys first, then values.

    Every query head has keys and values of its own; q is float32 [heads * head_dim].
    """
    if q.size != heads * head_dim:
        raise ConfigError(f"q has {q.size} entries, {heads * head_dim} are needed")
    part = heads * context * head_dim * 4
    scores = np.empty((1 if pool is None else pool.threads) * context, np.float32)
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": head_dim, "context": context}
    places = {"position_B": np.array([context - 1], np.int32), "scores": scores}
    out = np.empty_like(q)
    args = new("hc_attention_args", q=q, q_stride=q.size, batch=1, out=out, **sizes, **places)
    caches = {"k_cache": 0, "v_cache": part}
    return Timed(lib.hc_attention, args, pool, caches, "", lambda *_: 2 * part)
