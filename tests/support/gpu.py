"""Sessions with the GPU executor on a GPU, for the tests in tests/cuda."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracle import Oracle

from hotcold.native import cuda_plugin, nvml
from hotcold.native.device import open_plugin
from hotcold.runtime.config import EngineConfig
from hotcold.runtime.deployment import deploy, solve
from hotcold.runtime.errors import BackendError
from hotcold.runtime.prepare import prepare_model
from hotcold.runtime.session import LocalSession


def usable_plugin() -> Any:
    """The opened plug-in; skips without a GPU and with HOTCOLD_CUDA=off.

    With a GPU a plug-in that cannot be had, built or opened is a failure: skipped, every test of a
    GPU would be green where no kernel compiles.
    """
    if cuda_plugin.mode() == "off":
        pytest.skip("HOTCOLD_CUDA=off")
    if not nvml.gpus():
        pytest.skip("no NVIDIA GPU on this machine")
    try:
        return open_plugin(cuda_plugin.required().path)
    except BackendError as error:
        pytest.fail(f"a GPU is there and no plug-in for it: {error}", pytrace=False)


class Share:
    """Put a random share of each layer's neurons on the GPU, modules of some kinds on the host."""

    def __init__(self, share: float, seed: int = 0, host: tuple[str, ...] = ()) -> None:
        self.share, self.seed, self.host = share, seed, host

    def place(self, problem: Any) -> Any:
        filled = problem.fill(np.ones(problem.shape))
        rng = np.random.default_rng(self.seed)
        device_LN = (rng.random(problem.shape) >= self.share).astype(np.int8)
        homes = {
            name: "cpu0" if name.partition(".")[0] in self.host else "gpu0"
            for name in filled.modules
        }
        return type(filled)(device_LN, homes)


def session(model: Path, share: float | None = 0.5, **options: Any) -> LocalSession:
    options.setdefault("vram", "2GiB")
    if share is not None:
        options["policy"] = Share(share)
    prepared = prepare_model(EngineConfig(model=model, **options))
    assert prepared.gpu is not None
    return LocalSession(deploy(prepared, solve(prepared)))


def ids_of(model: Path, count: int) -> list[int]:
    vocab = Oracle.load(model).tensors["model.embed_tokens.weight"].shape[0]
    return np.random.default_rng(0).integers(3, vocab, count).tolist()
