import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.files.npz import pack, unpack

ARRAYS = {"a": np.arange(6, dtype=np.int8).reshape(2, 3), "b": np.array([0.5, np.nan])}


def test_round_trip_and_numpy_reads_it() -> None:
    data = pack(ARRAYS, {"note": "x"})
    header, arrays = unpack(data, 10_000)
    assert header == {"note": "x"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        np.testing.assert_array_equal(np.load(io.BytesIO(pack(ARRAYS)))[name], array)
    assert pack(ARRAYS, {"note": "x"}) == data


def test_every_truncation_and_every_flipped_byte_is_a_value_error_or_the_same_arrays() -> None:
    data = pack(ARRAYS, {"note": "x"})
    for size in range(len(data)):
        with pytest.raises(ValueError):
            unpack(data[:size], 10_000)
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 0xFF
        try:
            unpack(bytes(changed), 10_000)
        except ValueError:
            continue


def _npz(member: bytes, name: str = "a.npy") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, member)
    return out.getvalue()


def _npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def test_objects_absurd_shapes_and_bombs_are_refused() -> None:
    objects = _npy(np.array([print], dtype=object), allow_pickle=True)
    small = _npy(np.zeros(4))
    absurd = small.replace(b"(4,), }" + b" " * 9, b"(400000000,), } ")
    assert absurd != small and len(absurd) == len(small)
    broken = small.replace(b"}", b"(")
    for data in (
        _npz(objects),
        _npz(absurd),
        _npz(broken),
        _npz(b"\0" * 10**6),
        _npz(b"[1]", "header.json"),
    ):
        with pytest.raises(ValueError):
            unpack(data, 10_000)


def test_pack_refuses_objects() -> None:
    with pytest.raises(ValueError):
        pack({"a": np.array([print], dtype=object)})


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
