"""Sessions with the GPU executor on a GPU, for the tests in tests/cuda."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.oracle import Oracle

from hotcold.native.bindings.device import open_plugin
from hotcold.native.errors import BackendError
from hotcold.native.gpu import cuda_plugin, nvml
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig


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


# ---- what every form of model promises, of an oracle that has its form --------------------------
def check_gate_first(
    model: Path, oracle: Oracle, ids: list[int], share: float, **options: Any
) -> None:
    """Without prediction: the dense model's logits."""
    with session(model, share, **options) as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, oracle.forward(ids).logits_TV, atol=1e-3, rtol=0)


def check_masked(
    model: Path, oracle: Oracle, ids: list[int], share: float, **options: Any
) -> float:
    """With it: those of the oracle masked by the proposals made, whose firing neurons are counted.

    Returns:
        Share of the neurons that were proposed.
    """
    with session(model, share, **options) as local:
        logits, masks_TLN = local.logits(ids)
        states = {actor: local.segment.actor_state(actor) for actor in local.executors}
    masks_LTN = masks_TLN.transpose(1, 0, 2)
    expected = oracle.forward(ids, masks_LTN=masks_LTN)
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    fired = states["gpu"].up_down_rows + states["cpu"].up_down_rows
    threshold = getattr(oracle, "threshold", 0.0)
    wanted = (masks_LTN & (expected.gates_LTN > threshold)).sum()
    assert abs(fired - wanted) <= max(3, 1e-3 * wanted)
    return float(masks_TLN.mean())


def check_batches(model: Path, ids: list[int], batches: tuple[int, ...], **options: Any) -> None:
    """The largest batch of a pass changes no bit of proposals and logits."""
    runs = []
    for batch in batches:
        with session(model, max_batch=batch, **options) as local:
            runs.append(local.logits(ids))
    for logits, masks_TLN in runs[1:]:
        np.testing.assert_array_equal(masks_TLN, runs[0][1])
        np.testing.assert_array_equal(logits, runs[0][0])
