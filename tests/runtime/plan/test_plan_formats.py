"""Formats of hot and cold neurons in a placement and a plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.problems import module_bytes, tiny_problem, tiny_spec

from hotcold.native.errors import CheckpointError, ConfigError, PolicyError
from hotcold.runtime.files.npz import unpack
from hotcold.runtime.plan.placement import check_placement
from hotcold.runtime.plan.plan import Plan, make_plan
from hotcold.runtime.plan.problem import Placement

HALF_PLAN = "88e236712597ca06633cd92b87186d07d5d3225588964d5644898e05ac2039af"  # without formats


def placed() -> Placement:
    problem = tiny_problem()
    return problem.fill(problem.activations_LN)


def plan_of(placement: Placement) -> Plan:
    return make_plan(tiny_problem(), placement, "greedy", "abc")


def mixed_plan(hot: int = 3, cold: int = 0) -> Plan:
    found = placed()
    numbers = np.array([hot, cold], np.int8)
    return plan_of(replace(found, dtype_LN=numbers[found.device_LN]))


def test_formats_are_part_of_a_plan(tmp_path: Path) -> None:
    plain, hot, cold = mixed_plan(0, 0), mixed_plan(3, 0), mixed_plan(0, 3)
    assert plain.dtype_LN is None and not plain.format_bytes
    assert len({plain.hash, hot.hash, cold.hash, mixed_plan(3, 3).hash}) == 4
    size = tiny_problem().formats["int8"].bytes
    assert size == 3 * (16 + 16) + 32 and hot.format_bytes == {"int8": size}
    on_gpu = int((plain.device_LN == 0).sum())
    assert on_gpu and on_gpu < plain.device_LN.size
    assert plain.bytes_by_device["gpu0"] - hot.bytes_by_device["gpu0"] == on_gpu * (192 - size)
    assert hot.bytes_by_device["cpu0"] == plain.bytes_by_device["cpu0"]
    assert "neurons.0-2 in int8" in hot.describe() and "int8" not in plain.describe()
    assert [hot.format(1, device) for device in (0, 1)] == ["int8", None]
    hot.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert loaded.hash == hot.hash and loaded.describe() == hot.describe()
    assert loaded.dtype_LN is not None and hot.dtype_LN is not None
    np.testing.assert_array_equal(loaded.dtype_LN, hot.dtype_LN)
    assert loaded.format_bytes == hot.format_bytes


def test_a_plan_without_formats_is_saved_as_ever(tmp_path: Path) -> None:
    plan_of(placed()).save(tmp_path)
    header = json.loads((tmp_path / "plan.json").read_text())
    assert not {"dtype_LN", "format_bytes"} & set(header)
    _, arrays = unpack((tmp_path / "plan.npz").read_bytes(), 10**6)
    assert set(arrays) == {"device_LN", "neuron_bytes_L", "activations_LN"}
    assert plan_of(placed()).hash == HALF_PLAN


@pytest.mark.parametrize(
    "change",
    [
        {"dtype_LN": np.zeros((3, 41), np.int8)},
        {"dtype_LN": np.full((3, 40), 2, np.int8)},
        {"dtype_LN": np.eye(3, 40, dtype=np.int8) * 3},
        {"dtype_LN": None},
        {"format_bytes": {}},
        {"format_bytes": {"int4": 96}},
        {"format_bytes": {"int8": 96, "float32": 192}},
    ],
)
def test_formats_that_contradict_each_other_are_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not a plan: format_bytes"):
        replace(mixed_plan(), **change)


def test_damaged_formats_are_refused(tmp_path: Path) -> None:
    mixed_plan().save(tmp_path)
    path = tmp_path / "plan.json"
    good = json.loads(path.read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"format_bytes": {"int8": 64}}, "does not match its hash"),
        ({"format_bytes": {}}, "cannot be read|not a plan"),
        ({"format_bytes": {"int8": -1}}, "'format_bytes'"),
        ({"format_bytes": None}, "'format_bytes'"),
    ]
    for change, message in changes:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises((CheckpointError, ConfigError), match=message):
            Plan.load(tmp_path)
    del good["format_bytes"]
    path.write_text(json.dumps(good))
    with pytest.raises(CheckpointError, match="cannot be read: plan.npz holds"):
        Plan.load(tmp_path)


def test_budgets_count_bytes_of_formats() -> None:
    problem = tiny_problem()
    size, all_LN = problem.formats["int8"].bytes, np.zeros((3, 40), np.int8)
    need = module_bytes(problem) + 120 * size
    exact = replace(problem, budgets={**problem.budgets, "gpu0": need})
    homes = dict.fromkeys(placed().modules, "gpu0")
    int8 = Placement(all_LN, homes, dtype_LN=all_LN + np.int8(3))
    check_placement(exact, int8, "mine")
    short = replace(problem, budgets={**problem.budgets, "gpu0": need - 1})
    with pytest.raises(PolicyError, match=f"puts {need} bytes on gpu0, 1 over"):
        check_placement(short, int8, "mine")


def test_int8_models_have_no_other_format() -> None:
    problem = tiny_problem(spec=tiny_spec(neuron_dtype="int8"))
    assert problem.dtype == "int8" and not problem.formats
    wrong = replace(problem.fill(np.ones((3, 40))), dtype_LN=np.zeros((3, 40), np.int8))
    with pytest.raises(PolicyError, match=r"the format 0 \(float32\); here it may be 3 \(int8\)$"):
        check_placement(problem, wrong, "mine")
