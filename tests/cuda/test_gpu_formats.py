"""Hot and cold neurons in different formats on a GPU: computed, counted, prompted densely."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.formats import MIXES, Mixed, mixed_oracle
from support.gpu import session
from support.int8 import requantised
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle
from support.work import Rows, Run, ids_of

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import ConfigError

pytestmark = pytest.mark.gpu

MODELS: dict[str, Any] = {
    "llama": (
        write_llama,
        TinyLlama(d=192, layers=3, neurons=1300, heads=6, kv_heads=2, dtype="float16", seed=3),
        Oracle,
    ),
    "opt": (write_opt, TinyOpt(neurons=51), OptOracle),
}
PREDICTORS: dict[str, dict[str, Any]] = {
    "gate-first": {"predictor": "exact"},
    "low-rank": {"predictor": "low-rank", "settings": {"predictor.rank": "6"}, "audit": 8},
}
IDS = ids_of(45)
ROUNDED = 0.01  # of logits, where a prompt widens weights to float16


@pytest.fixture(scope="module")
def folders(plugin: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, (write, model, _) in MODELS.items():
        write(root / name, model)
    return {name: root / name for name in MODELS}


@pytest.mark.parametrize("predictor", list(PREDICTORS))
@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("model", list(MODELS))
def test_each_device_computes_in_its_own_format(
    folders: dict[str, Path], model: str, mix: str, predictor: str
) -> None:
    oracle, policy = MODELS[model][2].load(folders[model]), Mixed(*MIXES[mix])
    for batch in (1, 32):
        options = {"max_batch": batch, "prompt_form": "sparse", **PREDICTORS[predictor]}
        with session(folders[model], None, policy=policy, **options) as local:
            logits, masks_TLN = local.logits(IDS)
            states = {actor: local.segment.actor_state(actor) for actor in ("gpu", "cpu")}
            run = Run(local, IDS, masks_TLN, batch)
            assert run.stated("gpu", run.counted("gpu")) == states["gpu"].bytes
            if batch == 1:
                assert run.stated("cpu", run.counted("cpu")) == states["cpu"].bytes
        of_plan = mixed_oracle(oracle, local.deployment.plan)
        masks_LTN = masks_TLN.transpose(1, 0, 2)
        expected = of_plan.forward(IDS, masks_LTN=masks_LTN).logits_TV
        np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
        plain = oracle.forward(IDS, masks_LTN=masks_LTN).logits_TV
        assert np.abs(plain - expected).max() > 2e-3


@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("bus_share", [0.0, 0.4])
def test_a_dense_prompt_streams_the_models_own_cold_neurons(
    folders: dict[str, Path], mix: str, bus_share: float
) -> None:
    """Those that the GPU computes, fetched ones among them, are in their own format."""
    folder, policy = folders["llama"], Mixed(*MIXES[mix])
    options = {"prompt_form": "dense", "bus_share": bus_share, **PREDICTORS["gate-first"]}
    if bus_share and mix != "both int8":
        with pytest.raises(ConfigError, match="cannot fetch"):
            session(folder, None, policy=policy, **options)
        return
    with session(folder, None, policy=policy, **options) as local:
        run, deployment = Run.of(local, IDS), local.deployment
        logits, _ = local.logits(IDS)
        records = run.state("gpu").bytes // 2  # of two prompts
    plan = deployment.plan
    hot_LN = deployment.computed_plan.device_LN == 0
    sizes = [int(plan.neuron_bytes_L[0])] * 2
    dtype_LN = plan.dtype_LN
    assert dtype_LN is not None
    if plan.format(0, 0):
        sizes[0] = plan.format_bytes["int8"]
    whole = replace(run, batch=len(IDS))
    on_gpu = int(hot_LN.sum())
    stored = on_gpu * sizes[0] + (hot_LN.size - on_gpu) * sizes[1]
    assert records == whole.stated("gpu", Rows()) + stored
    oracle = requantised(Oracle.load(folder), hot_LN & (dtype_LN == DTYPES["int8"]))
    np.testing.assert_allclose(logits, oracle.forward(IDS).logits_TV, atol=ROUNDED, rtol=0)


@pytest.mark.parametrize("mix", list(MIXES))
def test_batch_changes_no_bit(folders: dict[str, Path], mix: str) -> None:
    runs = []
    for batch in (32, 5, 1):
        options = {"max_batch": batch, "prompt_form": "sparse", **PREDICTORS["low-rank"]}
        with session(folders["llama"], None, policy=Mixed(*MIXES[mix]), **options) as local:
            runs.append(local.logits(IDS)[0])
    for logits in runs[1:]:
        np.testing.assert_array_equal(logits, runs[0])


def test_what_is_fetched_is_computed_in_its_format(folders: dict[str, Path]) -> None:
    folder = folders["llama"]
    options = {"bus_share": 0.4, "prompt_form": "sparse", **PREDICTORS["gate-first"]}
    for policy in (Mixed("int8", "int8"), Mixed(None, "int8", share=0.0)):
        with session(folder, None, policy=policy, **options) as local:
            logits, _ = local.logits(IDS)
        expected = mixed_oracle(Oracle.load(folder), local.deployment.plan).forward(IDS)
        np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
