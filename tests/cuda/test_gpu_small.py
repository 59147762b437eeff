"""Tiny models through every kernel of a pass and of a dense prompt, for `make sanitize-gpu`.

compute-sanitizer watches single operators in test_kernels*.py; here it sees what binds them: how a
pass begins and ends, signals, waits, audits, captured graphs. A second or two without it.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import Share
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle

from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig

pytestmark = pytest.mark.gpu

LOW_RANK: dict[str, Any] = {
    "predictor": "low-rank",
    "settings": {"predictor.rank": "6", "predictor.margin": "0.3"},
    "audit": 4,
}
IDS = np.random.default_rng(0).integers(3, 290, 43).tolist()


@pytest.fixture(scope="module")
def llama(plugin: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "llama"
    write_llama(folder, TinyLlama(d=40, neurons=70, heads=4, kv_heads=2, dtype="float16"))
    return folder


@pytest.fixture(scope="module")
def opt(plugin: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "opt"
    write_opt(folder, TinyOpt(d=40, neurons=70, dtype="float16"))
    return folder


def logits(
    model: Path, expected: Any, form: str, tolerance: float, **options: Any
) -> dict[str, Any]:
    """Compare logits of a session with the oracle under its masks; the GPU executor's counts."""
    prepared = prepare_model(  # a context under a tool takes up to 3 GiB
        EngineConfig(model=model, vram="8GiB", policy=Share(0.5), prompt_form=form, **options)
    )
    assert prepared.gpu is not None
    with LocalSession(deploy(prepared, solve(prepared))) as local:
        found, masks_TLN = local.logits(IDS)
        state = local.segment.actor_state("gpu")
        counts = {name: getattr(state, name) for name in ("passes", "audit_rows", "gate_rows")}
    masked = masks_TLN.transpose(1, 0, 2) if masks_TLN is not None else None
    np.testing.assert_allclose(
        found, expected(IDS, masks_LTN=masked).logits_TV, atol=tolerance, rtol=0
    )
    return counts


@pytest.mark.parametrize("batch", [1, 11])
@pytest.mark.parametrize("schedule", ["paper", "selective"])
def test_predicted_passes(llama: Path, batch: int, schedule: str) -> None:
    """Signals, lists, audits, waits and their skipping, on caches of float16."""
    counts = logits(
        llama,
        Oracle.load(llama).forward,
        "sparse",
        0.05,
        schedule=schedule,
        max_batch=batch,
        kv_dtype="float16",
        **LOW_RANK,
    )
    assert counts["passes"] == -(-len(IDS) // batch)
    assert counts["audit_rows"] > 0


def test_passes_that_look_at_every_gate(llama: Path) -> None:
    counts = logits(
        llama, Oracle.load(llama).forward, "sparse", 1e-3, predictor="exact", max_batch=4
    )
    assert counts["gate_rows"] > 0


@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
@pytest.mark.parametrize("predictor_dtype", [None, "int8"])
def test_dense_prompts(llama: Path, kv_dtype: str, predictor_dtype: str | None) -> None:
    options = {**LOW_RANK, "kv_dtype": kv_dtype, "predictor_dtype": predictor_dtype}
    loose = 0.05 if kv_dtype == "float16" else 1e-3
    logits(llama, Oracle.load(llama).forward, "dense", loose, **options)


@pytest.mark.parametrize("options", [LOW_RANK, {"predictor": "exact"}])
def test_plain_layers_with_layer_norms(opt: Path, options: dict[str, Any]) -> None:
    logits(opt, OptOracle.load(opt).forward, "sparse", 2e-3, max_batch=4, **options)
