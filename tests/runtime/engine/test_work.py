"""Bytes by the steps of the programs are the bytes that the loops count, in every combination."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.work import (
    BOTH,
    INT8,
    MODELS,
    Rows,
    Run,
    ids_of,
    oracle_of,
    tensor_bytes,
    write_models,
)

from hotcold.native.abi.generated import Term
from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.low_rank import LowRank
from hotcold.policies.predictor.sign import Sign
from hotcold.policies.predictor.window import Window
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.program import work_of

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
    for i, (model, predictor) in enumerate(product((*MODELS, INT8), PREDICTORS)):
        for j, share in enumerate(SHARES):
            schedule = SCHEDULES[(i + j) % len(SCHEDULES)]
            if schedule == "lookahead" and predictor in EVALUATE_GATES:
                schedule = "serial"
            made.append((model, predictor, share, schedule))
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def prepared(
    folders: dict[str, Path], model: str, predictor: str, share: str = "mixed", **options: Any
) -> Prepared:
    policy = Share(SHARES[share])
    options |= {"predictor": PREDICTORS[predictor], "policy": policy, "vram": "1GiB"}
    config = EngineConfig(model=folders[model], dtype="int8" if model == INT8 else None, **options)
    return prepare_model(config)


@pytest.mark.parametrize(("model", "predictor", "share", "schedule"), cases())
def test_steps_say_what_is_counted(
    folders: dict[str, Path], model: str, predictor: str, share: str, schedule: str
) -> None:
    oracle = oracle_of(model, folders[model])
    for batch in (1, 32):
        options = {"max_batch": batch, "schedule": schedule, "audit": 8}
        ready = prepared(folders, model, predictor, share, **options)
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


@pytest.mark.parametrize("predictor", ["none", "matrices"])
@pytest.mark.parametrize("batch", [1, 5])
def test_keys_in_a_window_and_down_rows_that_are_not_needed(
    folders: dict[str, Path], predictor: str, batch: int
) -> None:
    oracle = oracle_of(BOTH, folders[BOTH])
    ready = prepared(folders, BOTH, predictor, max_batch=batch)
    row = ready.bundle.spec.d_model * ready.bundle.spec.element_bytes
    with LocalSession(deploy(ready, solve(ready))) as local:
        run = Run.of(local, ids_of(45))
        for actor in local.executors:
            rows = run.read_once(oracle, actor)
            unread, odd = divmod(run.stated(actor, rows) - run.state(actor).bytes, row)
            assert not odd
            assert 0.1 * rows.fired <= unread <= 0.7 * rows.fired  # by all tokens of a block


@pytest.mark.parametrize("model", [*MODELS, INT8])
def test_a_pass_reads_every_tensor_once(folders: dict[str, Path], model: str) -> None:
    """All that the file holds, but for tables of which a token looks up a row."""
    ready = prepared(folders, model, "none", "hot", max_batch=32)
    bundle, spec = ready.bundle, ready.bundle.spec
    with LocalSession(deploy(ready, solve(ready))) as local:
        run = Run.of(local, ids_of(30))
        dense = run.stated("gpu", Rows())
    names = {name.rpartition(".")[2] for name in bundle.tensors}
    tables = {"embed", "positions"} if not spec.tied else {"positions"}
    keys = len(run.ids) * 2 * spec.kv_dim * 4 * spec.n_layers
    assert dense == tensor_bytes(bundle, *(names - tables - {"neurons"})) + keys
    matrices = [
        entry.shape
        for name, entry in bundle.tensors.items()
        if len(entry.shape) == 2 and name.rpartition(".")[2] not in {*tables, "neurons"}
    ]
    steps = run.local.deployment.programs["gpu"]
    assert steps["flops"][:, Term.FIXED].sum() == 2 * sum(rows * d for rows, d in matrices)


@pytest.mark.parametrize("predictor", list(PREDICTORS))
@pytest.mark.parametrize("model", [*MODELS, INT8])
def test_the_placement_problem_is_made_of_the_same_bytes(
    folders: dict[str, Path], model: str, predictor: str
) -> None:
    ready = prepared(folders, model, predictor)
    problem = ready.problem
    deployment = deploy(ready, solve(ready))
    works = [work_of(step).bytes for program in deployment.programs.values() for step in program]
    half = next(module.read_share for module in problem.modules if module.kind == "kv")
    dense = sum(work.fixed + work.position * ready.context * half for work in works)
    own = sum(work.bytes.fixed for work in ready.work.predict_L) - sum(ready.predictor_bytes_L)
    read = sum(module.bytes * module.read_share for module in problem.modules)
    assert read + own == pytest.approx(dense)
    whole = problem.neuron_bytes_L[0] * problem.read_share
    assert whole == sum(vars(ready.work.neurons.bytes).values())
