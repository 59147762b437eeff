"""Arrays and a JSON header as one npz file, read without trusting it.

Used for plans, profiles and messages to the policies' child process. An npz is a zip of npy files,
so `numpy.load` opens what `pack` writes; `unpack` never unpickles, never allocates more than the
caller allows, and turns every kind of damage into a ValueError.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_HEADER = "header.json"


def pack(
    arrays: Mapping[str, NDArray[Any]],
    header: Mapping[str, Any] | None = None,
    compress: bool = False,
) -> bytes:
    """An npz of the arrays and, if given, a header of plain JSON data; the same input, same bytes.

    Raises:
        ValueError: an array of objects, or a header that JSON cannot hold.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        if header is not None:
            archive.writestr(zipfile.ZipInfo(_HEADER), json.dumps(header, allow_nan=False))
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as member:
                npy.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
    return out.getvalue()


def unpack(data: bytes, limit: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Inverse of pack: (header, arrays); without a header, an empty one.

    The unpacked members may have at most `limit` bytes together.

    Raises:
        ValueError: not an npz, damaged, too large, or with an array of objects.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(info.file_size for info in archive.infolist())
            if size > limit:
                raise ValueError(f"holds {size} bytes, at most {limit} are expected")
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        header = json.loads(members.pop(_HEADER, b"{}"))
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        arrays = {name.removesuffix(".npy"): _parse(content) for name, content in members.items()}
    except Exception as error:  # of zipfile, zlib, json, tokenize: all mean damage
        raise ValueError(str(error) or type(error).__name__) from error
    return header, arrays


def _parse(content: bytes) -> NDArray[Any]:
    """One npy file; the shape it claims must be the bytes it has."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"npy version {version} is not known")
    shape, fortran, dtype = read(stream)
    body = content[stream.tell() :]
    count = 1
    for length in shape:
        count *= length
    if dtype.hasobject or fortran or count * dtype.itemsize != len(body):
        raise ValueError(f"an array of dtype {dtype} {shape} does not match its {len(body)} bytes")
    return np.frombuffer(body, dtype=dtype).reshape(shape)
