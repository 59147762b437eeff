"""Planting on a GPU: the file is whole, its checksum true, its predictor exact."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.planted import options, session

from hotcold.runtime.model.checkpoints.bundle import open_bundle
from hotcold.runtime.model.checkpoints.digest import file_digest
from hotcold.runtime.offline.plant.making import plant
from hotcold.runtime.offline.plant.streams import raw_pieces

pytestmark = pytest.mark.gpu


@pytest.fixture
def torch_with_cuda(plugin: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch is built without CUDA")


@pytest.mark.parametrize("predictor", ["exact", "learned", "sign"])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("shape", ["small", "small-opt", "small-falcon"])
def test_planted_models_compute_what_the_cpu_device_does(
    plugin: Any,
    tmp_path: Path,
    shape: str,
    dtype: str,
    predictor: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = plant(options(shape, dtype=dtype), tmp_path / "out", device="cpu")
    ids = np.random.default_rng(0).integers(3, made.spec.vocab_size, 60).tolist()
    found = []
    for mode in ("require", "off"):
        monkeypatch.setenv("HOTCOLD_CUDA", mode)
        with session(made.path, predictor=predictor, vram="2GiB") as local:
            assert (local.deployment.gpu is not None) == (mode == "require")
            found.append(local.logits(ids))
    alike = np.ones(len(ids), bool)
    if predictor != "exact":  # which proposes what fires here, and everything there
        same = (found[0][1] == found[1][1]).all(axis=(1, 2))  # near a threshold, they may differ
        assert same.mean() > 0.9
        alike = np.cumprod(same).astype(bool)
    np.testing.assert_allclose(found[0][0][alike], found[1][0][alike], atol=2e-3, rtol=0)


@pytest.mark.parametrize("shape", ["small", "small-opt"])
def test_a_bundle_planted_on_a_gpu(torch_with_cuda: None, tmp_path: Path, shape: str) -> None:
    made = plant(options(shape), tmp_path / "out", device="cuda")
    bundle = open_bundle(made.path)
    assert bundle.checksum == made.checksum
    header = json.loads((made.path / "bundle.json").read_text())
    assert file_digest(bundle.weights_path) == header["weights"]["sha256"]
    assert made.recall == 1
    wanted = options(shape).drawing(on_gpu=True).statistics.density_L(2).mean()
    assert made.density == pytest.approx(float(wanted), rel=0.05)


def test_bytes_come_over_in_pieces(torch_with_cuda: None) -> None:
    values = torch.randn(4100, 10001, device="cuda").half().T
    pieces = [bytes(piece) for piece in raw_pieces(values)]
    assert len(pieces) == 2
    assert b"".join(pieces) == values.contiguous().cpu().numpy().tobytes()
