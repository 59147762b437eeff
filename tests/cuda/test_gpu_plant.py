"""Planting on a GPU: the file is whole, its checksum true, its predictor exact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.planted import options

from hotcold.runtime.formats.bundle import open_bundle
from hotcold.runtime.formats.digest import file_digest
from hotcold.runtime.plant.making import plant
from hotcold.runtime.plant.streams import raw_pieces

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def torch_with_cuda(plugin: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")


@pytest.mark.parametrize("shape", ["small", "small-opt"])
def test_a_bundle_planted_on_a_gpu(tmp_path: Path, shape: str) -> None:
    made = plant(options(shape), tmp_path / "out", device="cuda")
    bundle = open_bundle(made.path)
    assert bundle.checksum == made.checksum
    header = json.loads((made.path / "bundle.json").read_text())
    assert file_digest(bundle.weights_path) == header["weights"]["sha256"]
    assert made.recall == 1
    wanted = options(shape).drawing(on_gpu=True).statistics.density_L(2).mean()
    assert made.density == pytest.approx(float(wanted), rel=0.05)


def test_bytes_come_over_in_pieces() -> None:
    values = torch.randn(4100, 10001, device="cuda").half().T
    pieces = [bytes(piece) for piece in raw_pieces(values)]
    assert len(pieces) == 2
    assert b"".join(pieces) == values.contiguous().cpu().numpy().tobytes()
