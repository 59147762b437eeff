"""Bytes by the steps of the programs are the bytes that the loops count, in every combination."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.opt_oracle import OptOracle
from support.oracle import Oracle
from support.work import Rows, Run, tensor_bytes

from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.low_rank import LowRank
from hotcold.policies.predictor.sign import Sign
from hotcold.policies.predictor.window import Window
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.profiles.profile import ActivationProfile

LLAMA, OPT = (write_llama, Oracle.load), (write_opt, OptOracle.load)
MODELS: dict[str, tuple[Any, tuple[Callable[..., Any], Callable[..., Oracle]]]] = {
    "llama, grouped heads": (
        TinyLlama(d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301),
        LLAMA,
    ),
    "llama, tied float16": (TinyLlama(d=24, neurons=40, tied=True, dtype="float16"), LLAMA),
    "opt": (TinyOpt(d=35, layers=3, neurons=51, heads=5), OPT),
    "opt, projected, untied": (TinyOpt(d=30, heads=3, embed=17, tied=False, seed=3), OPT),
}
PREDICTORS: dict[str, Any] = {
    "exact": Exact(),
    "none": Exact(by="executors"),
    "matrices": LowRank(rank=6),
    "sign": Sign(recall=0.8),
    "window": Window(k=3, probe_every=5, share=0.1),
}
SHARES = {"hot": 1.0, "mixed": 0.5, "cold": 0.0}
SCHEDULES = ("selective", "lookahead", "serial", "fetch")
EVALUATE_GATES = ("exact", "window")  # of the layer's own input: no lookahead


class Share:
    """A random share of the neurons on the GPU."""

    def __init__(self, share: float) -> None:
        self.share = share

    def place(self, problem: Any) -> Any:
        filled = problem.fill(np.zeros(problem.shape))
        device_LN = (np.random.default_rng(0).random(problem.shape) >= self.share).astype(np.int8)
        return type(filled)(device_LN, dict.fromkeys(filled.modules, "gpu0"))


def cases() -> list[tuple[str, str, str, str]]:
    """Every model with every predictor and placement, and each of these with every schedule."""
    made = []
    for i, (model, predictor) in enumerate(product(MODELS, PREDICTORS)):
        for j, share in enumerate(SHARES):
            schedule = SCHEDULES[(i + j) % len(SCHEDULES)]
            if schedule == "lookahead" and predictor in EVALUATE_GATES:
                schedule = "serial"
            made.append((model, predictor, share, schedule))
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, (model, (write, load)) in MODELS.items():
        made[name] = folder = tmp_path_factory.mktemp("models") / "model"
        write(folder, model)
        fired_LN = load(folder).forward(ids_of(60, 9)).counts_LN
        ActivationProfile(fired_LN.astype(np.int64), 60).save(folder / "activations.npz")
    return made


def ids_of(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 290, count).tolist()


def prepared(folder: Path, predictor: str, share: str = "mixed", **options: Any) -> Prepared:
    policy = Share(SHARES[share])
    options |= {"predictor": PREDICTORS[predictor], "policy": policy, "vram": "1GiB"}
    config = EngineConfig(model=folder, **options)
    return prepare_model(config)


@pytest.mark.parametrize(("model", "predictor", "share", "schedule"), cases())
def test_steps_say_what_is_counted(
    folders: dict[str, Path], model: str, predictor: str, share: str, schedule: str
) -> None:
    oracle = MODELS[model][1][1](folders[model])
    for batch in (1, 32):
        options = {"max_batch": batch, "schedule": schedule, "audit": 8}
        ready = prepared(folders[model], predictor, share, **options)
        with LocalSession(deploy(ready, solve(ready))) as local:
            run = Run.of(local, ids_of(45))
            assert run.masks_TLN.any()
            for actor in local.executors:
                found = run.state(actor).bytes
                if batch == 1:  # a row serves one token: to the byte
                    assert run.stated(actor, run.counted(actor)) == found
                once = run.read_once(oracle, actor)
                if batch > 1 or actor != "predictor":
                    assert run.stated(actor, once) == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_pass_reads_every_tensor_once(folders: dict[str, Path], model: str) -> None:
    """All that the file holds, but for tables of which a token looks up a row."""
    ready = prepared(folders[model], "none", "hot", max_batch=32)
    bundle, spec = ready.bundle, ready.bundle.spec
    with LocalSession(deploy(ready, solve(ready))) as local:
        run = Run.of(local, ids_of(30))
        dense = run.stated("gpu", Rows())
    names = {name.rpartition(".")[2] for name in bundle.tensors}
    tables = {"embed", "positions"} if not spec.tied else {"positions"}
    keys = len(run.ids) * 2 * spec.kv_dim * 4 * spec.n_layers
    assert dense == tensor_bytes(bundle, *(names - tables - {"neurons"})) + keys


@pytest.mark.parametrize("predictor", list(PREDICTORS))
@pytest.mark.parametrize("model", list(MODELS))
def test_the_placement_problem_is_made_of_the_same_bytes(
    folders: dict[str, Path], model: str, predictor: str
) -> None:
    ready = prepared(folders[model], predictor)
    problem = ready.problem
    deployment = deploy(ready, solve(ready))
    steps = [step for program in deployment.programs.values() for step in program]
    dense = sum(int(step["bytes"][0] + step["bytes"][1] * ready.context / 2) for step in steps)
    own = sum(work.bytes.fixed for work in ready.work.predict_L) - sum(ready.predictor_bytes_L)
    read = sum(module.bytes * module.read_share for module in problem.modules)
    assert read + own == pytest.approx(dense)
    whole = problem.neuron_bytes_L[0] * problem.read_share
    assert whole == sum(vars(ready.work.neurons.bytes).values())
