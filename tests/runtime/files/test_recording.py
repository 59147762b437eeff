"""Recordings: round trips, and files that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold.runtime.files import recording
from hotcold.runtime.files.npz import pack
from hotcold.runtime.files.recording import read_recording, write_recording

FIRED = np.random.default_rng(0).random((7, 3, 21)) < 0.3
BITS = np.packbits(FIRED, axis=-1)
HEADER = {"model": "abc", "source": "a text", "neurons": 21}


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(BITS.tobytes() + b"behind the end")
    path = tmp_path / "bitmaps.npz"
    write_recording(path, tmp_path / "raw", (7, 3, 3), [5, 2], HEADER)
    for given in (path, tmp_path):
        found = read_recording(given)
        np.testing.assert_array_equal(found.fired_TLB, BITS)
        assert (found.windows, found.model, found.neurons) == ((5, 2), "abc", 21)
        assert found.source == "a text"
    with np.load(path, allow_pickle=False) as archive:
        np.testing.assert_array_equal(np.unpackbits(archive["fired_TLB"], axis=-1, count=21), FIRED)


def test_too_few_bits_leave_no_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(BITS.tobytes()[:-1])
    with pytest.raises(ValueError, match="1 bytes of bits are missing"):
        write_recording(tmp_path / "bitmaps.npz", tmp_path / "raw", (7, 3, 3), [7], HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_bits_alone_are_a_recording(tmp_path: Path) -> None:
    np.savez(tmp_path / "bitmaps.npz", fired_TLB=BITS)
    found = read_recording(tmp_path)
    assert (found.windows, found.model, found.neurons, found.source) == ((), "", 0, "")


@pytest.mark.parametrize(
    ("arrays", "header", "says"),
    [
        ({"other": BITS}, {}, "no array fired_TLB"),
        ({"fired_TLB": BITS[0]}, {}, "not uint8"),
        ({"fired_TLB": BITS.astype(np.int64)}, {}, "fired_TLB is int64"),
        (
            {"fired_TLB": BITS, "window_W": np.array([3, 3])},
            {},
            "windows have 6 tokens, its bits 7",
        ),
        ({"fired_TLB": BITS, "window_W": np.array(["7"])}, {}, "not lengths of windows"),
        ({"fired_TLB": BITS}, {"neurons": 25}, "says 25 neurons for 3 bytes"),
        ({"fired_TLB": BITS}, {"neurons": "many"}, "says 'many' neurons"),
    ],
)
def test_what_is_no_recording(
    tmp_path: Path, arrays: dict[str, Any], header: dict[str, Any], says: str
) -> None:
    path = tmp_path / "bitmaps.npz"
    path.write_bytes(pack(arrays, header))
    with pytest.raises(ValueError, match=says):
        read_recording(path)


def test_damaged_and_too_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bitmaps.npz"
    whole = pack({"fired_TLB": BITS}, HEADER)
    for content in (b"", b"PK", whole[:100], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_recording(path)
    path.write_bytes(whole)
    monkeypatch.setattr(recording, "LIMIT_BYTES", len(whole) - 1)
    with pytest.raises(ValueError, match="larger than"):
        read_recording(path)
