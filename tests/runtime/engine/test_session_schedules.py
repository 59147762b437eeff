"""Built-in schedules, run: what they promise about order, and the right tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.native.errors import ConfigError
from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.gpu import GpuChoice
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.fetch import fetched
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, in_order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, TinyLlama(d=35, layers=4, neurons=51, heads=5, kv_heads=1, head_dim=6))
    return folder


@pytest.fixture
def deployed(model: Path) -> Callable[..., Deployment]:
    def make(**options: Any) -> Deployment:
        prepared = prepare_model(EngineConfig(model=model, **options))
        return deploy(prepared, solve(prepared))

    return make


@pytest.mark.parametrize("by", ["predictor", "executors"])
def test_serial_never_computes_hot_and_cold_at_once(
    model: Path, deployed: Callable[..., Deployment], by: str
) -> None:
    settings = {"predictor.by": by}
    options: dict[str, Any] = {"settings": settings, "policy": "random"}
    serial = deployed(schedule="serial", **options)
    overlapping = deployed(schedule="paper", **options)
    layout = serial.layout
    hot = [step for step in serial.programs["gpu"] if step["op"] == 3]
    assert len(hot) == 4
    for step in hot:
        assert layout.flag("y", int(step["layer"])) in step["wait"]
    for step in overlapping.programs["gpu"]:
        assert step["op"] != 3 or layout.flag("y", int(step["layer"])) not in step["wait"]
    ids = np.random.default_rng(0).integers(3, 100, 40).tolist()
    with LocalSession(serial) as one, LocalSession(overlapping) as other:
        np.testing.assert_array_equal(one.logits(ids)[0], other.logits(ids)[0])


def test_a_gpu_refuses_an_order_that_its_graph_does_not_keep(model: Path) -> None:
    prepared = prepare_model(EngineConfig(model=model, policy="random", hardware="pc-low"))
    on_gpu = replace(prepared, gpu=GpuChoice("float32", None, 1 << 30, 1 << 20, 1 << 20))
    plan = solve(prepared)
    with pytest.raises(ConfigError, match="'serial' lets hot.0 wait for cold.0"):
        deploy(on_gpu, plan, "serial")
    for schedule in ("paper", "selective", "fetch"):
        assert deploy(on_gpu, plan, schedule).gpu is not None
    whole = solve(prepared, "ffn-split")  # no layer on both sides: nothing is put in turn
    assert deploy(on_gpu, whole, "serial").schedule == "serial"


@pytest.mark.parametrize("depth", [1, 2])
def test_lookahead_predicts_from_an_earlier_layer(
    model: Path, deployed: Callable[..., Deployment], depth: int
) -> None:
    ids = np.random.default_rng(1).integers(3, 100, 40).tolist()
    options: dict[str, Any] = {"predictor": "low-rank"}
    settings = {"predictor.rank": "12"}
    ahead = deployed(
        schedule="lookahead", settings=settings | {"schedule.depth": str(depth)}, **options
    )
    x_by_layer = [slots.x for slots in ahead.layout.layers]
    reads = [int(step["x"]) for step in ahead.programs["predictor"]]
    assert reads == [x_by_layer[max(layer - depth, 0)] for layer in range(4)]
    plain = deployed(schedule="selective", settings=settings, **options)
    with LocalSession(ahead) as one, LocalSession(plain) as other:
        logits, masks_TLN = one.logits(ids)
        _, plain_TLN = other.logits(ids)
    assert (masks_TLN[:, 0] == plain_TLN[:, 0]).all(), "the first layer has nothing to look back to"
    assert (masks_TLN != plain_TLN).any(), "looking ahead changed nothing"
    expected = Oracle.load(model).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("dtype", "row"), [(None, 4 * 35), ("int8", 35 + 2)])
def test_what_is_read_ahead_changes_no_bit(
    model: Path, deployed: Callable[..., Deployment], threads: int, dtype: str | None, row: int
) -> None:
    options: dict[str, Any] = {"predictor": "low-rank", "policy": "all-cpu", "threads": threads}
    options |= {"settings": {"predictor.rank": "12"}, "dtype": dtype}
    plain = deployed(schedule=ReadingAhead(False), **options)
    ahead = deployed(schedule=ReadingAhead(True), **options)
    assert ahead.reads_ahead and not plain.reads_ahead
    ids = np.random.default_rng(1).integers(3, 100, 40).tolist()
    with LocalSession(ahead) as one, LocalSession(plain) as other:
        logits, masks_TLN = one.logits(ids)
        for got, expected in zip((logits, masks_TLN), other.logits(ids), strict=True):
            np.testing.assert_array_equal(got, expected)
        most = int(masks_TLN[:, 1:].sum()) * 3 * row  # the first layer's list is not early
        assert 0 < one.segment.actor_state("cpu").ahead_bytes <= most
        assert other.segment.actor_state("cpu").ahead_bytes == 0


@dataclass
class ReadingAhead:
    """Every layer's list well before its input, which waits for the list."""

    read_ahead: bool

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        made = in_order(dag, lookahead=(0, 1, 1, 1))
        after = tuple((f"predict.{layer}", f"attention.{layer}") for layer in (1, 2, 3))
        return replace(made, read_ahead=self.read_ahead, after=after)


def test_lookahead_reads_ahead_beside_a_gpu_alone(model: Path) -> None:
    options: dict[str, Any] = {"predictor": "low-rank", "schedule": "lookahead"}
    for hardware, settings, expected in (
        ("pc-low", {}, True),
        ("xeon-2core", {}, False),
        ("pc-low", {"schedule.read_ahead": "false"}, False),
    ):
        own = {"predictor.rank": "12", **settings}
        config = EngineConfig(model=model, hardware=hardware, settings=own, **options)
        prepared = prepare_model(config)
        assert deploy(prepared, solve(prepared)).reads_ahead is expected


def test_lookahead_without_a_predictor_is_selective(deployed: Callable[..., Deployment]) -> None:
    by = {"predictor.by": "executors"}
    one, other = deployed(schedule="lookahead", settings=by), deployed(settings=by)
    for actor, program in one.programs.items():
        np.testing.assert_array_equal(program, other.programs[actor])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("by", ["predictor", "executors"])
@pytest.mark.parametrize("policy", ["random", "all-cpu", "layer-split"])
def test_fetched_neurons_are_computed_on_the_other_side_and_nothing_else_changes(
    model: Path, deployed: Callable[..., Deployment], share: float, by: str, policy: str
) -> None:
    settings = {"predictor.by": by, "schedule.share": str(share)}
    vram = "60000B" if policy == "layer-split" else None
    made = deployed(policy=policy, schedule="fetch", settings=settings, vram=vram)
    cold, taken = made.plan.device_LN == 1, fetched(made.plan.device_LN, made.fetch_L)
    assert cold.any() and not (taken & ~cold).any()
    assert taken.sum(axis=1).tolist() == [int(n * share) for n in cold.sum(axis=1)]
    ids = np.random.default_rng(2).integers(3, 100, 40).tolist()
    with LocalSession(made) as local:
        logits = local.logits(ids)[0]
        states = {actor: local.segment.actor_state(actor) for actor in ("gpu", "cpu")}
    oracle = Oracle.load(model).forward(ids)
    np.testing.assert_allclose(logits, oracle.logits_TV, atol=1e-3, rtol=0)
    on_gpu = taken | ~cold
    # A gate within rounding of zero may fall either way.
    assert states["gpu"].up_down_rows == pytest.approx(oracle.counts_LN[on_gpu].sum(), abs=3)
    assert states["cpu"].up_down_rows == pytest.approx(oracle.counts_LN[~on_gpu].sum(), abs=3)
    assert (states["cpu"].passes == 0) == (share == 1.0), "an executor without work stands by"


def test_fetching_nothing_is_selective(deployed: Callable[..., Deployment]) -> None:
    one, other = deployed(schedule="fetch", settings={"schedule.share": "0"}), deployed()
    assert one.computed_plan is one.plan
    for actor, program in one.programs.items():
        np.testing.assert_array_equal(program, other.programs[actor])


def test_fetch_goes_with_what_a_predictor_proposes(
    model: Path, deployed: Callable[..., Deployment]
) -> None:
    settings = {"predictor.rank": "12", "schedule.share": "0.5"}
    made = deployed(predictor="low-rank", schedule="fetch", settings=settings, policy="random")
    ids = np.random.default_rng(3).integers(3, 100, 40).tolist()
    with LocalSession(made) as local:
        logits, masks_TLN = local.logits(ids)
    assert not masks_TLN.all()
    expected = Oracle.load(model).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
