"""PowerInfer's folders of activation_{i}.pt, and files that are none."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hotcold.native.errors import CheckpointError
from hotcold.runtime.profiles import activation_pt
from hotcold.runtime.profiles.profile import ActivationProfile


def folder(path: Path, counts_LN: Any, dtype: torch.dtype = torch.int64) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for index, counts_N in enumerate(counts_LN):
        torch.save(torch.tensor(counts_N).to(dtype), path / f"activation_{index}.pt")
    return path


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64])
@pytest.mark.parametrize("inside", ["", "activation"])
def test_layers_are_in_order_of_their_numbers(
    tmp_path: Path, dtype: torch.dtype, inside: str
) -> None:
    # 12 layers: sorted as text, 10 and 11 would come before 2.
    counts_LN = np.random.default_rng(0).integers(0, 4000, (12, 40))
    folder(tmp_path / inside, counts_LN, dtype)
    found = ActivationProfile.load(tmp_path)
    np.testing.assert_array_equal(found.counts_LN, counts_LN)
    assert found.tokens == counts_LN.max() and found.model == ""
    assert "PowerInfer" in found.source and "tokens not known" in found.source
    assert found.sums_LN is None


def test_hotcolds_own_profile_goes_first(tmp_path: Path) -> None:
    folder(tmp_path, [[1, 2]])
    ActivationProfile(np.array([[3, 4]]), 9).save(tmp_path / "activations.npz")
    assert ActivationProfile.load(tmp_path).tokens == 9


def test_layers_that_never_fire_are_no_error(tmp_path: Path) -> None:
    found = ActivationProfile.load(folder(tmp_path, np.zeros((2, 5))))
    assert found.tokens == 1 and not found.counts_LN.any()


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    folder(tmp_path, np.ones((4, 3)))
    (tmp_path / "activation_2.pt").unlink()
    with pytest.raises(CheckpointError, match="3 files of counts but no activation_2.pt"):
        ActivationProfile.load(tmp_path)


class Evil:
    """Unpickled by an unsafe reader, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(2, 3), r"holds \[2, 3\], must be one tensor"),
        (torch.ones(3).to_sparse(), "must be one tensor"),
        ([1, 2, 3], "holds list"),
        ({"a": torch.ones(3)}, "holds dict"),
        (torch.ones(0), "holds 0 torch.float32"),
        (torch.ones(1).expand(1 << 40), "holds 1099511627776 torch.float32"),
        (torch.tensor([1.5]), "not whole counts"),
        (torch.tensor([-1]), "not whole counts"),
        (torch.tensor([float("nan")]), "not whole counts"),
        (torch.tensor([float("inf")]), "not whole counts"),
        (torch.ones(4), "counts of 4 neurons, activation_0.pt of 3"),
    ],
)
def test_what_is_no_layer_of_counts(tmp_path: Path, value: Any, says: str) -> None:
    folder(tmp_path, np.ones((3, 3)))
    torch.save(value, tmp_path / "activation_1.pt")
    with pytest.raises(CheckpointError, match=says) as caught:
        ActivationProfile.load(tmp_path)
    assert "activation_1.pt" in str(caught.value)


def test_damaged_files_and_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path, np.ones((1, 3))) / "activation_0.pt"
    whole = path.read_bytes()
    touched = tmp_path / "touched"
    evil = io.BytesIO()
    torch.save(Evil(touched), evil)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(activation_pt.MAX_FILE_BYTES + 1))
    for content in (b"", b"text", whole[:200], whole[:-50], evil.getvalue(), bomb.getvalue()):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable file of counts"):
            ActivationProfile.load(tmp_path)
    assert not touched.exists()
