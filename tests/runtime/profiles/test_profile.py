"""ActivationProfile: the embedded one, statistics, round trips, damage."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.predictors import random_oracle, spec_of

from hotcold.native.errors import CheckpointError
from hotcold.runtime.profiles.profile import ActivationProfile

EMBEDDED = Path(__file__).parents[3] / "runtime" / "embedded" / "activations.npz"
COUNTS = np.array([[10, 60, 0, 30], [1, 1, 1, 1]], dtype=np.int64)
PROFILE = ActivationProfile(COUNTS, tokens=100, model="abc", source="two lines\nof \u20ac")
# Of layer 0's 100 tokens 50 had no neuron firing and 50 had two; layer 1's had none or all four.
TOKENS = np.array([[50, 0, 50, 0, 0], [99, 0, 0, 0, 1]], dtype=np.int64)
SUMS = COUNTS * np.array([[0.5, 1.0, 9.0, 2.0], [3.0, 4.0, 5.0, 6.0]])
FULL = ActivationProfile(COUNTS, 100, "abc", "text", SUMS, TOKENS)


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        ActivationProfile.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def member(path: Path, name: str, data: bytes) -> Path:
    """The good profile with one array's bytes replaced."""
    PROFILE.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in {**parts, f"{name}.npy": data}.items():
            archive.writestr(entry, content)
    return path


def npy(header: str, body: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    return magic + len(header).to_bytes(2, "little") + header.encode() + body


def test_the_embedded_profile() -> None:
    profile = ActivationProfile.load(EMBEDDED)
    assert profile.counts_LN.shape == (8, 1280) and profile.tokens == 999424
    # What the training of the model reported for it.
    assert profile.sparsity_L[0] == pytest.approx(0.8366999, abs=1e-6)
    assert profile.sparsity_L.mean() == pytest.approx(0.9024006, abs=1e-6)
    share = profile.share_for(0.8)
    assert (share[0], share[7]) == pytest.approx((0.75078125, 0.6484375), abs=1e-9)
    assert profile.share_for_model(0.8) == pytest.approx(0.59326171875, abs=1e-9)


def test_statistics_by_hand() -> None:
    np.testing.assert_array_equal(PROFILE.probabilities_LN, COUNTS / 100)
    np.testing.assert_allclose(PROFILE.sparsity_L, [0.75, 0.99])
    np.testing.assert_array_equal(PROFILE.share_for(0.6), [0.25, 0.75])
    np.testing.assert_array_equal(PROFILE.share_for(0.61), [0.5, 0.75])
    np.testing.assert_array_equal(PROFILE.share_for(1.0), [0.75, 1.0])
    assert PROFILE.share_for_model(0.9) == 3 / 8
    silent = ActivationProfile(np.zeros((1, 3), np.int64), tokens=5)
    assert silent.share_for(0.8).tolist() == [0.0] and silent.sparsity_L.tolist() == [1.0]


def test_summary_has_a_line_a_layer_and_one_for_all() -> None:
    lines = PROFILE.summary().splitlines()
    assert len(lines) == 5
    assert lines[1].split() == ["0", "75.0%", "25.0%", "50.0%", "25.0%"]
    assert lines[3].split() == ["all", "87.0%", "12.5%", "25.0%", "12.5%"]
    assert lines[4] == "over 100 tokens"


def test_magnitudes_and_spread_by_hand() -> None:
    for share, expected in ((0.5, [0.0, 0.0]), (0.51, [0.5, 0.0]), (1.0, [0.5, 1.0])):
        density_L = FULL.density_quantile(share)
        assert density_L is not None and density_L.tolist() == expected
    assert PROFILE.density_quantile(0.5) is None
    lines = FULL.summary().splitlines()
    assert lines[1].split()[5:] == ["0.0", "-", "50.0%", "1.25"]


def test_all_that_was_counted_is_kept(tmp_path: Path) -> None:
    FULL.save(tmp_path / "activations.npz")
    found = ActivationProfile.load(tmp_path)  # by its folder
    np.testing.assert_array_equal(found.sums_LN, SUMS)
    np.testing.assert_array_equal(found.tokens_LK, TOKENS)
    with pytest.raises(CheckpointError, match="holds no profile"):
        ActivationProfile.load(tmp_path.parent)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"sums": SUMS[0]}, r"sums are float64\[4\]"),
        ({"sums": SUMS.astype(np.float32)}, "sums are float32"),
        ({"sums": SUMS + 1}, "sums contradict"),
        ({"sums": -SUMS}, "sums contradict"),
        ({"sums": SUMS * np.nan}, "sums contradict"),
        ({"fired": TOKENS[:1]}, r"int64\[1, 5\]"),
        ({"fired": np.pad(TOKENS, ((0, 0), (0, 1)))}, "up to 5"),
        ({"fired": TOKENS[:, :0]}, r"int64\[2, 0\]"),
        ({"fired": TOKENS[::-1]}, "tokens by fired neurons contradict"),
        ({"fired": TOKENS + 1}, "tokens by fired neurons contradict"),
        ({"fired": TOKENS - [50, 0, 0, 0, 0]}, "tokens by fired neurons contradict"),
        ({"fired": TOKENS.astype(np.float64)}, "float64"),
    ],
)
def test_what_contradicts_the_counts(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = npz(tmp_path / "p.npz", counts=COUNTS, tokens=100, **arrays)
    with pytest.raises(CheckpointError, match=says):
        ActivationProfile.load(path)


def test_round_trip_and_same_bytes(tmp_path: Path) -> None:
    PROFILE.save(tmp_path / "a.npz")
    found = ActivationProfile.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.counts_LN, COUNTS)
    assert (found.tokens, found.model, found.source) == (100, PROFILE.model, PROFILE.source)
    found.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["counts"], COUNTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    PROFILE.save(path)
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        ActivationProfile(COUNTS, tokens=999).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"tokens": 5}, "no array 'counts'"),
        ({"counts": COUNTS}, "no array 'tokens'"),
        ({"counts": -COUNTS, "tokens": 100}, "from -60 to 0"),
        ({"counts": COUNTS, "tokens": 59}, "from 0 to 60.*59 tokens"),
        ({"counts": COUNTS, "tokens": 0}, "tokens is 0"),
        ({"counts": COUNTS, "tokens": -3}, "tokens is -3"),
        ({"counts": COUNTS, "tokens": [100]}, "tokens is int64"),
        ({"counts": COUNTS, "tokens": 100.0}, "tokens is float64"),
        ({"counts": COUNTS[0], "tokens": 100}, r"int64\[4\], must be int64 \[L, N\]"),
        ({"counts": COUNTS[:, :0], "tokens": 100}, r"int64\[2, 0\]"),
        ({"counts": COUNTS / 2, "tokens": 100}, "dtype float64"),
        ({"counts": np.array([[2**63]], np.uint64), "tokens": 100}, "from -"),
        ({"counts": COUNTS, "tokens": 100, "notes": np.array([255], np.uint8)}, "notes"),
        ({"counts": COUNTS, "tokens": 100, "notes": np.array([91, 93], np.uint8)}, "notes"),
        ({"counts": COUNTS.astype(object), "tokens": 100}, "dtype object"),
        ({"counts": COUNTS.astype(str), "tokens": 100}, "dtype <U"),
    ],
)
def test_impossible_values(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    path = npz(tmp_path / "p.npz", **arrays)
    with pytest.raises(CheckpointError, match=says):
        ActivationProfile.load(path)
    refused(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"not an array at all",
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-2, -4), }\n", bytes(64)),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 5), }\n", bytes(64)),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }\n", bytes(64)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }\n", bytes(8)),
        npy("{'descr': '<i8', 'fortran_order': True, 'shape': (2, 4), }\n", bytes(64)),
        npy("__import__('os').abort()\n"),
        npy(
            "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 4), }\n",
            bytes(64),
            b"\x93NUMPY\x09\x00",
        ),
    ],
)
def test_damaged_arrays(tmp_path: Path, data: bytes) -> None:
    refused(member(tmp_path / "p.npz", "counts", data))


def test_not_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    PROFILE.save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[:-10], whole[50:]):
        path.write_bytes(content)
        assert "not a readable profile" in refused(path)
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    path.write_bytes(flipped)
    refused(path)
    path.unlink()
    refused(path)
    refused(tmp_path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotcold.runtime.profiles.profile.LIMIT_BYTES", 2000)
    path = tmp_path / "p.npz"
    ActivationProfile(np.zeros((1, 20_000), np.int64), 1).save(path)
    assert path.stat().st_size < 2000
    assert "at most 2000 are expected" in refused(path)


def test_a_profile_of_another_model() -> None:
    spec = spec_of(random_oracle(layers=2, neurons=40))
    ActivationProfile(np.zeros((2, 40), np.int64), 1).check_fits(spec)
    with pytest.raises(CheckpointError, match="2 layers of 4 neurons, the model has 2 of 40"):
        PROFILE.check_fits(spec)
    same = ActivationProfile(np.zeros((2, 40), np.int64), 1, model="a" * 64)
    same.check_model(spec, "a" * 64)
    ActivationProfile(same.counts_LN, 1).check_model(spec, "b" * 64)  # it does not say which
    with pytest.raises(CheckpointError, match="another model .aaaaaaaaaaaa, this one is bbbb"):
        same.check_model(spec, "b" * 64)


def test_overlap_of_the_hottest_by_hand() -> None:
    one = ActivationProfile(np.array([[9, 8, 1, 2, 3], [5, 4, 3, 2, 1]], np.int64), 10)
    two = ActivationProfile(np.array([[1, 9, 8, 2, 3], [5, 4, 3, 2, 1]], np.int64), 10)
    assert one.overlap(two, 0.4) == (1 / 2 + 1) / 2
    assert one.overlap(one) == 1
    with pytest.raises(CheckpointError, match="do not compare"):
        one.overlap(ActivationProfile(np.ones((2, 6), np.int64), 10))
