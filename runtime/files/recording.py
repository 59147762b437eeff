"""Recordings: which neurons fired for every token, packed to a bit each.

`bitmaps.npz`, written by `hotcold profile --bitmaps`: `fired_TLB`, uint8 [tokens, layers,
ceil(neurons / 8)], as numpy.packbits(fired, axis=-1) gives them (the first neuron is the highest
bit); `window_W` has the length of each window: where the context starts again. The header names
model, source and neurons. numpy.load opens it. The policy `oracle` places neurons by it; studies of
drift and simulations replay it.

Written as a stream, because recordings are large: 69 KB per token for a 13B model.
"""

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.files.npz import unpack

FILE_NAME = "bitmaps.npz"
LIMIT_BYTES = 2**32  # readers hold a recording in memory
_HEADER = "header.json"
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class Recording:
    """What fired, token by token.

    Args:
        fired_TLB: packed bits [tokens, layers, ceil(neurons / 8)].
        windows: lengths of the windows, in order; empty where unknown.
        model: checksum of the bundle; "" where unknown.
        neurons: of a layer; 0 where unknown.
    """

    fired_TLB: NDArray[np.uint8]
    windows: tuple[int, ...] = ()
    model: str = ""
    neurons: int = 0
    source: str = ""


def check_size(shape: tuple[int, int], tokens: int) -> None:
    """Refuse a recording that no reader would take; `shape` is layers, and a token's bytes in each.

    Raises:
        ConfigError: it is larger than LIMIT_BYTES.
    """
    room = LIMIT_BYTES // (shape[0] * shape[1]) - 1
    if tokens > room:
        raise ConfigError(
            f"bitmaps of {tokens} tokens are larger than {LIMIT_BYTES} bytes; "
            f"lower --max-tokens to {room} or leave out --bitmaps"
        )


def read_recording(path: Path) -> Recording:
    """Read a recording, given as its file or folder.

    Raises:
        ValueError: not one, damaged, or larger than LIMIT_BYTES.
        OSError: it cannot be read.
    """
    path = path / FILE_NAME if path.is_dir() else path
    if path.stat().st_size > LIMIT_BYTES:
        raise ValueError(f"it is larger than {LIMIT_BYTES} bytes")
    header, arrays = unpack(path.read_bytes(), LIMIT_BYTES)
    if "fired_TLB" not in arrays:
        raise ValueError("it has no array fired_TLB")
    fired_TLB, window_W = arrays["fired_TLB"], arrays.get("window_W", np.zeros(0, np.int64))
    if fired_TLB.dtype != np.uint8 or fired_TLB.ndim != 3:
        raise ValueError(f"fired_TLB is {fired_TLB.dtype} {fired_TLB.shape}, not uint8 [T, L, B]")
    if window_W.dtype.kind != "i" or window_W.ndim != 1:
        raise ValueError(f"window_W is {window_W.dtype} {window_W.shape}, not lengths of windows")
    if len(window_W) and int(window_W.sum()) != len(fired_TLB):
        raise ValueError(f"its windows have {window_W.sum()} tokens, its bits {len(fired_TLB)}")
    neurons = header.get("neurons", 0)
    if not isinstance(neurons, int) or (neurons and -(-neurons // 8) != fired_TLB.shape[2]):
        raise ValueError(f"it says {neurons!r:.40} neurons for {fired_TLB.shape[2]} bytes of bits")
    model, source = (str(header.get(name, "")) for name in ("model", "source"))
    return Recording(fired_TLB, tuple(int(n) for n in window_W), model, neurons, source)


def write_recording(
    path: Path, bits: Path, shape: tuple[int, int, int], windows: Sequence[int], header: Any
) -> None:
    """Make a recording from a file of raw bits, atomically.

    The shape is tokens, layers, ceil(neurons / 8); bits behind it are left out. The header holds
    model, source and neurons.

    Raises:
        ValueError: there are fewer bits than the shape says.
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(zipfile.ZipInfo(_HEADER), json.dumps(header, allow_nan=False))
                with archive.open(zipfile.ZipInfo("window_W.npy"), "w") as member:
                    npy.write_array(member, np.asarray(windows, np.int64), allow_pickle=False)
                entry = zipfile.ZipInfo("fired_TLB.npy")
                with archive.open(entry, "w", force_zip64=True) as member, open(bits, "rb") as raw:
                    head = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    npy.write_array_header_1_0(member, head)
                    _copy(raw, member, shape[0] * shape[1] * shape[2])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _copy(raw: Any, member: Any, count: int) -> None:
    while count:
        piece = raw.read(min(count, _COPY_BYTES))
        if not piece:
            raise ValueError(f"{count} bytes of bits are missing")
        member.write(piece)
        count -= len(piece)
