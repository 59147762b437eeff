"""What operators ask of arrays before their addresses go to C, and the C arguments made of them.

Used by the typed kernels beside this file; checks raise ConfigError.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.formats import FORMATS
from hotcold.native.abi.generated import (
    CACHE_LINE,
    MAX_DEVICES,
    active_bytes,
    active_gate,
    active_ids,
    active_members,
)
from hotcold.native.bindings._ffi import ffi, lib, new
from hotcold.native.bindings.pool import CPointer, Pool
from hotcold.native.errors import ConfigError

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
Weights = NDArray[Any]

_WORDS = {np.dtype(raw): raw for raw in ("float32", "float16", "int8")}
_WORDS[np.dtype("uint16")] = "bfloat16"


def handle(pool: Pool | None) -> CPointer:
    """The C pool of a Pool; NULL for None."""
    return ffi.NULL if pool is None else pool.handle


def array(name: str, value: NDArray[Any], dtype: type[np.generic], ndim: int) -> NDArray[Any]:
    """Value, if it has that dtype and rank and is C-contiguous."""
    if value.dtype != dtype or value.ndim != ndim or not value.flags.c_contiguous:
        raise ConfigError(
            f"{name} is {value.dtype} of shape {value.shape}, a C-contiguous {np.dtype(dtype)} "
            f"array of {ndim} axes is needed"
        )
    return value


def same(name: str, value: int, needed: int) -> None:
    """Refuse a number of entries that is not the needed one."""
    if value != needed:
        raise ConfigError(f"{name} has {value} entries, {needed} are needed")


def vector(name: str, value: NDArray[Any] | None, dtype: type[np.generic], needed: int) -> None:
    """Refuse a vector of another dtype or number of entries; None is fine."""
    if value is not None:
        same(name, array(name, value, dtype, 1).size, needed)


def word(dtype: np.dtype[Any]) -> str:
    """The dtype's word of a weight array."""
    if dtype not in _WORDS:
        raise ConfigError(
            f"weights are {dtype}; float32, float16, uint16 (bfloat16) or int8 are needed"
        )
    return _WORDS[dtype]


def ffn_scratch(n_ids: int, batch: int) -> NDArray[np.uint8]:
    """Scratch of hc_ffn for a list of n_ids, on a cache line."""
    room = np.empty(lib.hc_ffn_scratch_bytes(n_ids, batch) + CACHE_LINE, np.uint8)
    return room[-room.ctypes.data % CACHE_LINE :]


def writable(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """Value, if it may be written to."""
    if not value.flags.writeable:
        raise ConfigError(f"{name} is read-only; pass a writable copy")
    return value


# ---- arguments; arrays given by address are the caller's to keep -------------------------------


def gemv_args(w_RD: Weights, dtype: str, x_BD: F32, y_BR: F32, **more: Any) -> Any:
    """An hc_gemv_args of rows that may be apart."""
    rows, (batch, d) = len(w_RD), x_BD.shape
    stride = w_RD.strides[0] if rows > 1 else w_RD.shape[1] * w_RD.itemsize
    sizes = {"stride_bytes": stride, "rows": rows, "d": d, "batch": batch, "dtype": dtype}
    places = {"x_BD": x_BD, "x_stride": d, "y_BR": y_BR, "y_stride": rows}
    return new("hc_gemv_args", w=w_RD.ctypes.data, **sizes, **places, **more)


def ffn_args(
    dtype: str, x_BD: F32, y_BD: F32, stride: int, gated: bool = True, bias: int = 0, **more: Any
) -> Any:
    """An hc_ffn_args of records that begin with gate row, up row (if gated) and down column.

    stride: bytes from one record to the next; bias: bytes to the gate's bias, 0: none.
    """
    batch, d = x_BD.shape
    of = FORMATS[dtype]
    row = of.part_bytes(d)
    up, down = (row, 2 * row) if gated else (-1, row)
    record = {"bytes": stride, "up": up, "down": down, "bias": bias, "dtype": dtype}
    record |= {"scales": of.scales(d), "group": of.group}
    sizes = {"record": record, "d": d, "batch": batch}
    return new("hc_ffn_args", x_BD=x_BD, y_BD=y_BD, **sizes, **more)


def attention_args(
    q: F32, k_cache: Weights, v_cache: Weights, heads: int, position_B: I32, out: F32, **more: Any
) -> Any:
    """An hc_attention_args of rows of q and caches [.., kv_heads, context, head_dim]."""
    kv_heads, context, head_dim = k_cache.shape[-3:]
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "context": context}
    sizes |= {"batch": len(q), "q_stride": q.size // max(1, len(q))}
    caches = {"k_cache": k_cache, "v_cache": v_cache}
    return new("hc_attention_args", q=q, position_B=position_B, out=out, **caches, **sizes, **more)


def sign_args(
    signs_NW: NDArray[np.uint64],
    scale_N: F32,
    bias_N: F32 | None,
    column_D: F32 | None,
    x_BD: F32,
    scores_BN: F32,
    **more: Any,
) -> Any:
    """An hc_sign_args."""
    (batch, d), n = x_BD.shape, len(signs_NW)
    rows = {"signs_NW": signs_NW, "scale_N": scale_N, "bias_N": bias_N, "column_D": column_D}
    places = {"x_BD": x_BD, "scores_BN": scores_BN}
    return new("hc_sign_args", n=n, d=d, batch=batch, **rows, **places, **more)


class ActiveLists:
    """An hc_split_args, and room for the active list of each device.

    with_gate: the scores go along as gate pre-activations.
    """

    def __init__(
        self, scores_BN: F32, threshold: float, device_N: NDArray[np.int8], with_gate: bool = False
    ) -> None:
        self._batch, self._n = scores_BN.shape
        room = active_bytes(self._n, self._batch if with_gate else 0)
        lists = min(MAX_DEVICES, max(2, int(device_N.max(initial=0)) + 1))
        self._data = [np.zeros(room, np.uint8) for _ in range(lists)]
        self._lists = [ffi.cast("hc_active *", data.ctypes.data) for data in self._data]
        for one in self._lists:
            one.capacity = self._n
        sizes = {"n": self._n, "batch": self._batch, "threshold": threshold, "out": self._lists}
        self.args = new(
            "hc_split_args", scores_BN=scores_BN, device_N=device_N, with_gate=with_gate, **sizes
        )

    def found(self) -> list[tuple[I32, U32, F32]]:
        """By device, after the split: ids, members, and gates [K, B] where they go along."""
        counts = [int(one.count) for one in self._lists]
        n, batch, gated = self._n, self._batch, bool(self.args.with_gate)
        return [
            (
                data[active_ids() :].view(np.int32)[:count],
                data[active_members(n) :].view(np.uint32)[:count],
                data[active_gate(n) :].view(np.float32)[: count * batch * gated].reshape(-1, batch),
            )
            for data, count in zip(self._data, counts, strict=True)
        ]
