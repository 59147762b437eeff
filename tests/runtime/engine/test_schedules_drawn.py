"""Placements over two to four devices and schedules, drawn at random: the oracle's logits, and the
steps of the program in its order.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.schedules import Given, check_run, placements, plan_of, schedules
from support.tiny_models import FALCON
from support.work import Written, llama, opt, other

from hotcold.policies.predictor.exact import Exact
from hotcold.policies.predictor.low_rank import LowRank
from hotcold.runtime.engine.deployment import deploy
from hotcold.runtime.engine.prepare import Prepared, prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.schedule import in_order
from hotcold.runtime.topology import CLASSIC, Topology

MODELS: dict[str, Written] = {
    "llama": llama(d=24, layers=4, neurons=40, heads=3, kv_heads=1),
    "opt": opt(d=21, layers=4, neurons=33, heads=3),
    "falcon": other(FALCON["40b"]),  # attention beside the feed-forward part
}
PREDICTORS = {"exact": Exact(), "none": Exact(by="executors"), "matrices": LowRank(rank=6)}
AHEAD = {"exact": 0, "none": 0, "matrices": 2}
TOPOLOGIES = (CLASSIC, Topology(1, 2), Topology(2, 1), Topology(2, 2))
Prepare = Callable[[str, str, Topology], Prepared]
IDS = np.random.default_rng(0).integers(3, 290, 11).tolist()


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    folders: dict[str, Path] = {}
    for name, (write, _) in MODELS.items():
        folders[name] = tmp_path_factory.mktemp("models") / "model"
        write(folders[name])

    @cache
    def prepared(model: str, predictor: str, topology: Topology) -> Prepared:
        options: dict[str, Any] = {"predictor": PREDICTORS[predictor], "max_batch": 4}
        options |= {"gpu_executors": topology.gpus, "cpu_executors": topology.cpus}
        return prepare_model(EngineConfig(model=folders[model], vram="1GiB", **options))

    return prepared


@cache
def oracle_of(model: str, folder: Path) -> Any:
    return MODELS[model][1](folder)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.data(),
    st.sampled_from(list(MODELS)),
    st.sampled_from(list(PREDICTORS)),
    st.sampled_from(TOPOLOGIES),
)
def test_any_legal_schedule_gives_the_oracles_logits(
    prepare: Prepare, data: Any, model: str, predictor: str, topology: Topology
) -> None:
    prepared = prepare(model, predictor, topology)
    spec = prepared.bundle.spec
    device_LN = data.draw(placements(spec.n_layers, spec.n_neurons, topology))
    plan, dag = plan_of(prepared, device_LN)
    made = data.draw(schedules(dag, AHEAD[predictor]))
    oracle = oracle_of(model, Path(prepared.bundle.source))
    deployment = deploy(prepared, plan, Given(device_LN, made))
    threads = {topology.owner(lane).actor: count for lane, count in made.threads.items()}
    assert threads.items() <= {a: own.threads for a, own in deployment.cores.items()}.items()
    logits = check_run(deployment, dag, made, oracle, IDS)
    if not any(made.fetch) and not any(made.lookahead):
        plain = in_order(dag)
        usual = deploy(prepared, plan, Given(device_LN, plain))
        np.testing.assert_array_equal(logits, check_run(usual, dag, plain, oracle, IDS))
