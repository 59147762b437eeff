"""Every placement policy fills several devices of a kind, each within its budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import module_bytes, tiny_problem

from hotcold.native.errors import ConfigError, PolicyError
from hotcold.policies import check_placement
from hotcold.runtime.hardware.machine_file import load_hardware
from hotcold.runtime.plan.cost import predict
from hotcold.runtime.plan.plan import Plan, make_plan
from hotcold.runtime.plan.problem import Placement, Problem
from hotcold.runtime.plugins.registry import find, instantiate
from hotcold.runtime.topology import Topology

SIZE = 192  # bytes of a neuron
FAST = replace(load_hardware("h100-16core"), sync_s=1e-9)  # so that `ilp` closes no layer


def place(name: str, given: Problem) -> Placement:
    """What a policy makes of a problem, in this process."""
    policy: Any = instantiate(find("placement", name), {})
    placed: Placement = policy.place(given)
    return placed


def problem(gpus: int, cpus: int, room: int = 480) -> Problem:
    """Room for so many of 640 neurons, shared by the GPU executors."""
    modules = module_bytes(tiny_problem(4, 160))
    vram = [modules * (not gpu) + room // gpus * SIZE for gpu in range(gpus)]
    p_LN = np.random.default_rng(5).random((4, 160)) ** 3
    topology = Topology(gpus, cpus)
    return tiny_problem(4, 160, vram, p_LN, topology=topology, hardware=FAST)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "policy", ["greedy", "ilp", "latency", "random", "per-layer", "layer-split", "ffn-split"]
)
@pytest.mark.parametrize(("gpus", "cpus"), [(2, 1), (1, 2), (3, 2)])
def test_all_are_filled(policy: str, gpus: int, cpus: int) -> None:
    given = problem(gpus, cpus)
    placed = place(policy, given)
    check_placement(given, placed, policy)
    counts = np.bincount(placed.device_LN.reshape(-1), minlength=gpus + cpus)
    whole = place(policy, problem(1, 1))
    whole_layers = policy in ("layer-split", "ffn-split")  # for which the GPUs' rests are too small
    assert abs((placed.device_LN < gpus).sum() - (whole.device_LN == 0).sum()) <= 320 * whole_layers
    assert counts.min() > 0
    assert np.ptp(counts[gpus:]) <= 1
    if not whole_layers and policy != "latency":  # which may move modules
        np.testing.assert_array_equal(placed.device_LN < gpus, whole.device_LN == 0)
        assert np.ptp(counts[:gpus]) <= 1


def test_no_neuron_but_on_cpu_executors() -> None:
    placed = place("all-cpu", problem(2, 2))
    assert np.bincount(placed.device_LN.reshape(-1)).tolist() == [0, 0, 320, 320]


def test_more_gpus_take_less_time_and_more_cpu_executors_as_long() -> None:
    time = {}
    for gpus, cpus in ((1, 1), (2, 1), (1, 2)):
        given = problem(gpus, cpus, room=640)
        hot_LN = np.ones(given.shape, np.bool_)
        time[gpus, cpus] = [
            predict(given, replace(place("all-cpu", given), device_LN=given.divide(mask, homes)))
            for homes in [given.homes()[0]]
            for mask in (hot_LN, ~hot_LN)
        ]
    (hot, cold), (hot_two, _), (_, cold_two) = time.values()
    assert hot_two.layers[0].hot_s == pytest.approx(hot.layers[0].hot_s / 2, rel=0.02)
    assert cold_two.layers[0].cold_s == pytest.approx(cold.layers[0].cold_s, rel=0.02)


def test_modules_go_to_the_first_gpu_or_to_the_host() -> None:
    given = problem(2, 2)
    placed = place("greedy", given)
    wrong = replace(placed, modules={**placed.modules, "kv.1": "gpu1"})
    with pytest.raises(
        PolicyError, match=r"'kv.1' on gpu1, which holds neurons alone; choose gpu0"
    ):
        check_placement(given, wrong, "mine")
    check_placement(given, replace(placed, modules={**placed.modules, "kv.1": "cpu1"}), "mine")


def test_a_plan_keeps_its_devices(tmp_path: Path) -> None:
    given = problem(2, 3)
    plan = make_plan(given, place("greedy", given), "greedy", "checksum")
    assert plan.topology == Topology(2, 3)
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert (loaded.hash, loaded.gpus, loaded.devices) == (plan.hash, 2, plan.devices)
    np.testing.assert_array_equal(loaded.device_LN, plan.device_LN)
    for device in plan.devices:
        assert f"{device}: " in plan.describe()
    assert replace(plan, gpus=1).hash != plan.hash
    with pytest.raises(ConfigError, match="devices of GPU and of CPU executors are needed"):
        replace(plan, gpus=5)
