import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import module_bytes, tiny_plan, tiny_problem

from hotcold.native.errors import CheckpointError, ConfigError, PolicyError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.plan import Plan, check_placement, make_plan
from hotcold.runtime.plan.problem import Module, Placement


def half_plan(**changes: Any) -> Plan:
    problem = tiny_problem(**changes)
    return make_plan(problem, problem.fill(problem.activations_LN), "greedy", "abc")


# --- bounds


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 300),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.sampled_from(["skewed", "zero", "equal", "one"]),
    st.integers(0, 5),
)
def test_bounds_cut_every_share_into_chunks_of_like_work(
    neurons: int, owned: float, kind: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    p_N = {
        "skewed": random.permutation(np.arange(1, neurons + 1.0) ** -1.2),
        "zero": np.zeros(neurons),
        "equal": np.full(neurons, 0.3),
        "one": np.eye(1, neurons)[0],
    }[kind]
    device_LN = (random.random((1, neurons)) >= owned).astype(np.int8)
    plan = tiny_plan(device_LN, activations_LN=p_N[None, :])
    for device in (0, 1):
        ids, bounds_C = plan.ids(0, device), plan.bounds(0, device, 16)
        assert ids.dtype == bounds_C.dtype == np.int32
        assert len(bounds_C) == 17 and bounds_C[0] == 0 and bounds_C[-1] == neurons
        assert (np.diff(bounds_C) >= 0).all()
        chunks = [ids[(ids >= a) & (ids < b)] for a, b in zip(bounds_C, bounds_C[1:], strict=False)]
        np.testing.assert_array_equal(np.concatenate(chunks), ids)
        for chunk in chunks:  # at most twice its part of neurons and of activations, but for one
            assert len(chunk) <= 2 * len(ids) / 16 + 1 + 1e-4 * len(ids)
            slack = p_N[chunk].max(initial=0) + 1e-5 * neurons
            assert p_N[chunk].sum() <= 2 * p_N[ids].sum() / 16 + slack


def test_bounds_depend_on_the_plan_alone() -> None:
    one, other = half_plan(), half_plan()
    for layer in range(3):
        np.testing.assert_array_equal(one.bounds(layer, 0, 64), other.bounds(layer, 0, 64))


def test_a_layer_keeps_its_own_neurons() -> None:
    device_LN = np.ones((12, 20), dtype=np.int8)
    for layer in range(12):
        device_LN[layer, layer] = 0
    plan = tiny_plan(device_LN)
    assert [plan.ids(layer, 0).tolist() for layer in range(12)] == [[n] for n in range(12)]


# --- what a plan says


def test_plan_completes_the_placement() -> None:
    problem = tiny_problem(vram=None)
    placement = replace(problem.fill(problem.activations_LN), note="mine")
    plan = make_plan(problem, placement, "greedy", "abc")
    placement.device_LN[:] = 1
    assert (plan.device_LN == 0).sum() == 60
    assert plan.bytes_by_device == {
        "gpu0": module_bytes(problem) + 60 * 192,
        "cpu0": 60 * 192,
    }
    assert plan.gpu_activation_share == pytest.approx(
        problem.activations_LN[plan.device_LN == 0].sum() / problem.activations_LN.sum()
    )
    assert plan.note == "mine"
    text = plan.describe()
    assert "60 of 120 neurons" in text and "attention.0-2" in text and plan.hash[:12] in text


def test_share_of_activations_without_any() -> None:
    assert tiny_plan(np.eye(4, dtype=np.int8), activations_LN=np.zeros((4, 4))).describe()
    plan = tiny_plan(np.eye(4, dtype=np.int8), activations_LN=np.zeros((4, 4)))
    assert plan.gpu_activation_share == 0.75


def test_notes_name_a_missing_profile_and_modules_on_the_host() -> None:
    plan = half_plan(vram=0)
    assert "the GPU executor still computes them" in plan.note
    problem = tiny_problem(profiled=False)
    assert (
        "no activation profile" in make_plan(problem, problem.fill(np.zeros((3, 40))), "x", "").note
    )


def test_hash_changes_with_what_decides_a_run_and_only_with_that() -> None:
    plan = half_plan()
    assert len(plan.hash) == 64 and half_plan().hash == plan.hash
    assert replace(plan, policy="other", note="other").hash == plan.hash
    moved = plan.device_LN.copy()
    moved[0, 0] ^= 1
    changes: list[dict[str, Any]] = [
        {"device_LN": moved},
        {"model": "abd"},
        {"modules": {**plan.modules, "head": "cpu0"}},
        {"activations_LN": plan.activations_LN * 0.5},
    ]
    assert len({plan.hash, *(replace(plan, **change).hash for change in changes)}) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"device_LN": np.full((3, 40), 2, dtype=np.int8)},
        {"device_LN": np.zeros((3, 41), dtype=np.int8)},
        {"activations_LN": np.full((3, 40), np.nan)},
        {"modules": {"norms": "gpu9"}},
        {"budgets": {}},
    ],
)
def test_a_plan_of_contradicting_parts_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not a plan"):
        replace(half_plan(), **change)


# --- files


def test_save_and_load(tmp_path: Path) -> None:
    plan = half_plan()
    for _ in range(2):  # the second time over the first
        plan.save(tmp_path / "deep" / "plan")
    loaded = Plan.load(tmp_path / "deep" / "plan")
    assert loaded.hash == plan.hash and loaded.describe() == plan.describe()
    assert loaded.bytes_by_device == plan.bytes_by_device and loaded.policy == "greedy"
    files = sorted(path.name for path in (tmp_path / "deep" / "plan").iterdir())
    assert files == ["plan.json", "plan.npz"]


def test_save_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write a plan"):
        half_plan().save(tmp_path / "file")


def test_no_plan(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        with pytest.raises(CheckpointError, match="no plan in"):
            Plan.load(path)


def test_every_damage_is_refused(tmp_path: Path) -> None:
    plan = half_plan()
    plan.save(tmp_path)
    arrays, header = tmp_path / "plan.npz", tmp_path / "plan.json"
    good_arrays, good = arrays.read_bytes(), json.loads(header.read_text())
    replace(plan, device_LN=1 - plan.device_LN).save(tmp_path / "other")

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            Plan.load(tmp_path)

    for content in (good_arrays[:100], b"", good_arrays + b"\0" * 2**20, b"PK"):
        arrays.write_bytes(content)
        refused("cannot be read")
    arrays.write_bytes((tmp_path / "other" / "plan.npz").read_bytes())
    refused("does not match its hash")
    arrays.unlink()
    refused("cannot be read")
    arrays.write_bytes(good_arrays)

    for change, message in [
        ({"version": 1}, "version 1"),
        ({"format": "x"}, "not a hotcold plan"),
        ({"shape": [3, 41]}, "cannot be read"),
        ({"shape": [10**9, 10**9]}, "'shape'"),
        ({"shape": [-3, 40]}, "'shape'"),
        ({"devices": "gpu0"}, "'devices'"),
        ({"devices": ["gpu0"]}, "cannot be read"),
        ({"modules": {"norms": 3}}, "'modules'"),
        ({"budgets": {"gpu0": -1}}, "'budgets'"),
        ({"context": "many"}, "'context'"),
        ({"model": "another"}, "does not match its hash"),
        ({"hash": None}, "'hash'"),
    ]:
        header.write_text(json.dumps({**good, **change}))
        refused(message)
    for text in ("", "[]", "{", "[" * 100_000, "null"):
        header.write_text(text)
        refused("cannot be read|not a hotcold plan")
    header.write_text(json.dumps(good))
    assert Plan.load(tmp_path).hash == plan.hash


# --- check_placement


def placement(**changes: Any) -> Placement:
    problem = tiny_problem()
    return replace(problem.fill(problem.activations_LN), **changes)


HOMES = {module.name: "gpu0" for module in tiny_problem().modules}


class Odd(dict[str, str]):
    """A dict, but not a plain one."""


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned nothing; place.problem. must return a Placement"),
        ((np.zeros((3, 40), np.int8), HOMES), "returned an object of type tuple"),
        (SimpleNamespace(device_LN=1), "returned an object of type SimpleNamespace"),
        (Placement, "returned an object of type type"),
        (placement(device_LN=None), "device_LN of NoneType"),
        (placement(device_LN=[[0] * 40] * 3), "device_LN of list"),
        (placement(device_LN=np.zeros((3, 40))), "device_LN of float64"),
        (placement(device_LN=np.full((3, 40), np.nan)), "device_LN of float64"),
        (placement(device_LN=np.zeros((3, 40), dtype=object)), "device_LN of object"),
        (placement(device_LN=np.zeros((3, 40), dtype=np.int64)), "device_LN of int64"),
        (placement(device_LN=np.zeros((40, 3), dtype=np.int8)), r"shape \(40, 3\)"),
        (placement(device_LN=np.int8(0)), "device_LN of int8|shape"),
        (placement(device_LN=np.full((3, 40), 2, np.int8)), "neuron 0 of layer 0 on device 2"),
        (placement(device_LN=np.full((3, 40), -1, np.int8)), "device -1"),
        (placement(dtype_LN=[[0] * 40] * 3), "dtype_LN of list; it must be None or a numpy array"),
        (placement(dtype_LN=np.zeros((3, 40))), "dtype_LN of float64"),
        (placement(dtype_LN=np.zeros((40, 3), np.int8)), r"dtype_LN of shape \(40, 3\)"),
        (
            placement(dtype_LN=np.full((3, 40), 1, np.int8)),
            r"neuron 0 of layer 0 the format 1 \(float16\); here it may be 0 \(float32\) or 3",
        ),
        (placement(dtype_LN=np.full((3, 40), 9, np.int8)), "the format 9; here"),
        (
            placement(dtype_LN=np.eye(3, 40, k=-1, dtype=np.int8) * 3),
            r"of layer 1 on .*0 as 0 \(float32\) and 3 \(int8\); give all",
        ),
        (placement(note=3), "note of type int"),
        (placement(note="x" * 10**5), "note of 100000 characters"),
        (placement(modules=None), "modules of type NoneType"),
        (placement(modules=list(HOMES)), "modules of type list"),
        (placement(modules={}), "gave module 'attention.0' no device"),
        (placement(modules={**HOMES, "extra": "gpu0"}), "'extra'"),
        (placement(modules={**HOMES, 7: "gpu0"}), "placed a module 7"),
        (placement(modules={**HOMES, "head": "gpu1"}), "'head' on 'gpu1'"),
        (placement(modules={**HOMES, "head": 0}), "'head' on 0"),
        (placement(modules={**HOMES, "head": ["gpu0"]}), "'head' on"),
        (placement(device_LN=np.zeros((3, 40), np.int8)), "over its budget"),
    ],
)
def test_wrong_placements_are_refused_and_the_policy_is_blamed(result: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=f"^policy 'mine' .*{message}"):
        check_placement(tiny_problem(), result, "mine")
    with pytest.raises(PolicyError, match="^policy 'mine' "):
        make_plan(tiny_problem(), result, "mine", "abc")


def test_other_mappings_and_exact_budgets_are_fine() -> None:
    check_placement(tiny_problem(), placement(modules=Odd(HOMES)), "mine")
    problem = tiny_problem()
    full = np.zeros((3, 40), np.int8)
    need = module_bytes(problem) + 120 * 192
    exact = replace(problem, budgets={**problem.budgets, "gpu0": need})
    check_placement(exact, placement(device_LN=full), "mine")
    short = replace(problem, budgets={**problem.budgets, "gpu0": need - 1})
    with pytest.raises(PolicyError, match=f"puts {need} bytes on gpu0, 1 over .* {need - 1}"):
        check_placement(short, placement(device_LN=full), "mine")


def test_modules_that_must_share_a_device() -> None:
    modules = (Module("head", None, 1, "tie"), Module("norms", None, 1, "tie"))
    problem = replace(tiny_problem(), modules=modules)
    apart = placement(modules={"head": "gpu0", "norms": "cpu0"})
    with pytest.raises(PolicyError, match="'head' and 'norms' apart"):
        check_placement(problem, apart, "mine")


def test_hardware_is_part_of_the_problem() -> None:
    assert tiny_problem().hardware == HardwareProfile.unmeasured()
