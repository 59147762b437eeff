"""Formats of neurons as numpy arrays: how rows are stored in a part of a record, and read back.

int8: q_i of -127 to 127 and, for each GROUP of a row's weights, a float16 scale s: w_i = s q_i,
exact in float32. s is the group's largest magnitude / 127, rounded to the nearest float16, or up
where the nearest would leave that weight more than half a step outside. Used by the bundle writer,
the planter and the weight store; a new format is a row of STORED, of abi/formats.py and in C.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.formats import FORMATS
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, Raw, convert, to_float32

Rows = NDArray[np.float32]
Bytes = NDArray[np.uint8]
LARGEST = 127


class Stored(NamedTuple):
    """A format's two ways.

    pack: raw rows [n, d] of a dtype to bytes [n, part_bytes(d)]; OverflowError: one does not fit.
    unpack: their exact values, given d.
    """

    pack: Callable[[Raw, str], Bytes]
    unpack: Callable[[Bytes, int], Rows]


def _plain(dtype: str) -> Stored:
    def pack(rows: Raw, given: str) -> Bytes:
        raw = np.ascontiguousarray(convert(rows, given, dtype), RAW_TYPES[dtype])
        return raw.view(np.uint8).reshape(len(rows), -1)

    def unpack(raw: Bytes, d: int) -> Rows:
        values = np.ascontiguousarray(raw).view(RAW_TYPES[dtype])[:, :d]
        return np.array(to_float32(values, dtype), np.float32)

    return Stored(pack, unpack)


def _quantise(rows: Raw, given: str) -> Bytes:
    of, (n, d) = FORMATS["int8"], rows.shape
    whole = np.zeros((n, of.groups(d) * of.group), np.float32)
    whole[:, :d] = to_float32(rows, given)
    groups = whole.reshape(n, -1, of.group)
    largest = np.maximum(np.abs(groups.max(axis=2)), np.abs(groups.min(axis=2)))
    with np.errstate(over="ignore"):
        scale = (largest / LARGEST).astype(np.float16)
        short = scale.astype(np.float32) * (LARGEST + 0.5) < largest
        scale[short] = np.nextafter(scale[short], np.float16(np.inf))
    if not np.isfinite(scale).all():
        raise OverflowError(f"{largest.max():g} is beyond int8's {LARGEST * 65504.0:g}")
    groups /= np.where(scale > 0, scale, 1).astype(np.float32)[:, :, None]
    q = np.rint(groups, out=groups).clip(-LARGEST, LARGEST, out=groups).astype(np.int8)
    packed = np.zeros((n, of.part_bytes(d)), np.uint8)
    packed[:, :d] = q.reshape(n, -1)[:, :d].view(np.uint8)
    begin = of.scales(d)
    packed[:, begin : begin + 2 * of.groups(d)] = scale.view(np.uint8)
    return packed


def _dequantise(raw: Bytes, d: int) -> Rows:
    of, begin = FORMATS["int8"], FORMATS["int8"].scales(d)
    scales = np.ascontiguousarray(raw[:, begin : begin + 2 * of.groups(d)]).view(np.float16)
    q = np.ascontiguousarray(raw[:, :d]).view(np.int8).astype(np.float32)
    return q * np.repeat(scales.astype(np.float32), of.group, axis=1)[:, :d]


STORED: dict[str, Stored] = {dtype: _plain(dtype) for dtype in RAW_TYPES}
STORED["int8"] = Stored(_quantise, _dequantise)
