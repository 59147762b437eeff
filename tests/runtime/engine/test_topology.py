"""Several GPU and CPU executors in one process: the tokens of the three actors, and refusals."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import tiny_plan, tiny_spec
from support.work import opt

from hotcold.native.abi.generated import Op, StepFlag
from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.factory import roles
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model, with_budget
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.plan.dag import build_dag
from hotcold.runtime.plan.program import compile_programs
from hotcold.runtime.plan.schedule import in_order
from hotcold.runtime.topology import Topology

PROMPT = [1, 50, 60, 70, 80]
SEVERAL = ((1, 2), (2, 1), (2, 2))


@pytest.fixture(scope="module", params=["llama", "opt"])
def tokens(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[int]]:
    """Greedy tokens of the embedded model or of an OPT, under options."""
    model: Path | None = None
    if request.param == "opt":
        model = tmp_path_factory.mktemp("models") / "opt"
        opt(d=21, layers=4, neurons=33, heads=3)[0](model)

    @cache
    def greedy(gpus: int = 1, cpus: int = 1, **options: Any) -> list[int]:
        deployment = deployed(gpus, cpus, model=model, **options)
        with LocalSession(deployment) as session:
            drawn = session.sample(PROMPT, Sampling(12, ignore_eos=True))
            return [id_ for id_, _ in drawn]

    return greedy


def deployed(gpus: int, cpus: int, **options: Any) -> Deployment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTCOLD_CUDA", "off")
        counts = {"gpu_executors": gpus, "cpu_executors": cpus, "threads": 1}
        prepared = prepare_model(EngineConfig(**counts, **options))
        return deploy(prepared, solve(prepared))


@pytest.mark.parametrize(("gpus", "cpus"), SEVERAL)
def test_tokens_are_those_of_three_actors(
    tokens: Callable[..., list[int]], gpus: int, cpus: int
) -> None:
    assert len(tokens()) == 12
    assert tokens(gpus, cpus, predictor="exact") == tokens(predictor="exact")


@pytest.mark.parametrize(
    "options",
    [
        {"predictor": "low-rank", "schedule": "lookahead"},
        {"predictor": "sign", "schedule": "serial", "policy": "random"},
        {"predictor": "window", "schedule": "fetch", "policy": "ffn-split"},
        {"predictor": "exact", "store": "private", "policy": "layer-split"},
    ],
    ids=lambda options: options["predictor"],
)
def test_any_predictor_schedule_and_policy(
    tokens: Callable[..., list[int]], options: dict[str, str]
) -> None:
    options = options | ({} if options["predictor"] == "exact" else {"audit": 1})
    assert tokens(2, 2, **options) == tokens(**options)


def test_each_executor_says_what_it_has() -> None:
    made = deployed(2, 3, vram="3MiB,1MiB")
    assert made.plan.budgets["gpu0"] == 3 << 20 and made.plan.budgets["gpu1"] == 1 << 20
    said = roles(made)
    assert list(said) == ["gpu", "gpu1", "cpu", "cpu1", "cpu2", "predictor"]
    for member in made.topology.executors:
        own = int((made.plan.device_LN == member.index).sum())
        assert own and f"{own} of 10240 neurons" in said[member.actor]
    assert made.threads_text.startswith("1/1/1/1/1/1 threads")


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTCOLD_CUDA", "off")
    with pytest.raises(ConfigError, match="4 GPU executors and 4 CPU executors; .* at most 7"):
        EngineConfig(gpu_executors=4, cpu_executors=4)
    with pytest.raises(ConfigError, match="'1MiB,2MiB' has 2 sizes, for 3 GPU executors"):
        EngineConfig(gpu_executors=3, vram="1MiB,2MiB")
    with pytest.raises(ConfigError, match="cpu_executors"):
        EngineConfig(cpu_executors=0)
    prepared = prepare_model(EngineConfig(cpu_executors=2))
    solve(prepared).save(tmp_path)
    with pytest.raises(ConfigError, match="is for gpu0, cpu0, cpu1, .* cpu_executors 2"):
        solve(prepare_model(EngineConfig(plan=tmp_path)))
    assert solve(prepare_model(EngineConfig(plan=tmp_path, cpu_executors=2))).gpus == 1
    two = prepare_model(EngineConfig(gpu_executors=2))
    assert with_budget(two, "1MiB,2MiB").problem.budgets["gpu1"] == 2 << 20


def test_the_table_of_actors() -> None:
    table = Topology(2, 2)
    assert table.actors == ("gpu", "gpu1", "cpu", "cpu1", "predictor")
    assert table.devices == ("gpu0", "gpu1", "cpu0", "cpu1")
    assert [member.on_gpu for member in table.members] == [True, True, False, False, False]
    assert table.owner("cpu1") is table.member("cpu1") is table.members[3]
    assert table.owner("predictor") is table.predictor and table.leader.actor == "gpu"


def test_the_last_layer_of_every_executor_is_a_barrier() -> None:
    """Its merge waits whatever its list names, so that the next pass may reuse what lies there."""
    owner_L = [0, 1, 2, 1, 0]  # gpu0, cpu0, cpu1: their last layers are 4, 3 and 2
    device_LN = np.tile(np.array(owner_L, np.int8)[:, None], (1, 40))
    topology = Topology(1, 2)
    plan = tiny_plan(device_LN, topology=topology)
    dag = build_dag(tiny_spec(5), plan, predicts=True)
    layout = SegmentLayout.build(5, 16, 40, 4, topology=topology)
    programs = compile_programs(dag, in_order(dag, sync="selective"), layout)
    merges = {int(step["layer"]): step for step in programs["gpu"] if step["op"] == Op.MERGE}
    selective = [layer for layer, step in merges.items() if step["flags"] & StepFlag.SELECTIVE]
    assert selective == [1]
    assert merges[3]["wait"][:4].tolist() == [layout.flag("active", 3), -1, layout.flag("y", 3), -1]
    assert merges[2]["wait"][3] == layout.flag("y", 2, device=2) == programs["cpu1"][0]["signal"]
    assert [int(step["device"]) for step in programs["cpu1"]] == [2]
