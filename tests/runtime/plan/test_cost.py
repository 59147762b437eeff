from dataclasses import replace

import numpy as np
import pytest
from support.problems import tiny_plan, tiny_problem, tiny_spec

from hotcold.policies.schedule.fetch import Fetch
from hotcold.policies.schedule.lookahead import Lookahead
from hotcold.policies.schedule.paper import Paper
from hotcold.policies.schedule.selective import Selective
from hotcold.policies.schedule.serial import Serial
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.cost import CostModel, predict, predict_schedule
from hotcold.runtime.plan.dag import build_dag
from hotcold.runtime.plan.plan import make_plan
from hotcold.runtime.plan.problem import Placement, Problem

HARDWARE = HardwareProfile("table", False, 10.0, 100.0, 5.0, 1e6, 1e6, 1e-6)
RECORD = 192


def problem(**changes: object) -> Problem:
    p_LN = np.array([[1.0, 0.5, 0.0, 0.5], [0.2, 0.2, 0.2, 0.2]])
    return replace(
        tiny_problem(2, 4, vram=2**30, activations_LN=p_LN, hardware=HARDWARE),
        **changes,  # type: ignore[arg-type]
    )


def homes(of: Problem, **moved: str) -> dict[str, str]:
    return {m.name: moved.get(m.kind, "gpu0") for m in of.modules}


SPLIT = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.int8)


def test_a_layer_by_hand() -> None:
    case = problem()
    token = CostModel(case).token(SPLIT, homes(case))
    first, second = token.layers
    assert first.hot_s == pytest.approx(1.5 * RECORD / 100e9)
    assert first.cold_s == pytest.approx(0.5 * RECORD / 10e9)
    assert first.exchange_s == pytest.approx(0.5e-6)  # one of two cold neurons fires half the time
    assert second.cold_s == second.exchange_s == 0
    assert first.total_s == pytest.approx(first.dense_s + first.cold_s + first.exchange_s)
    sizes = {m.name: m.bytes * m.read_share for m in case.modules}
    assert first.dense_s == pytest.approx((sizes["attention.0"] + sizes["kv.0"]) / 100e9)
    assert token.rest_s == pytest.approx((sizes["norms"] + sizes["head"]) / 100e9)
    assert token.total_s == pytest.approx(first.total_s + second.total_s + token.rest_s)
    assert token.tokens_per_s == pytest.approx(1 / token.total_s)
    always = CostModel(case, selective=False).token(SPLIT, homes(case)).layers
    assert (always[0].exchange_s, always[1].exchange_s) == (1e-6, 0)


def test_formats_have_bytes_and_arithmetic_of_their_own() -> None:
    case = problem(hardware=replace(HARDWARE, gpu_gflops=1.0))  # 2 operations a weight: 2 ns
    other, made = case.formats["int8"], homes(case)
    both = CostModel(case, dtype_LN=np.full((2, 4), 3, np.int8)).token(SPLIT, made).layers[0]
    read = other.bytes * other.read_share
    assert read == 3 * (16 + 2)
    assert both.hot_s == pytest.approx(1.5 * read * 2e-9)
    assert both.cold_s == pytest.approx(0.5 * read / 10e9)
    plain, cold = predict(case, Placement(SPLIT, made)).layers, SPLIT * np.int8(3)
    mixed = predict(case, Placement(SPLIT, made, dtype_LN=cold)).layers
    assert mixed[0].hot_s == plain[0].hot_s == pytest.approx(1.5 * RECORD * 0.5e-9)
    assert mixed[0].cold_s == both.cold_s and mixed[1] == plain[1]


def test_fetched_neurons_cost_the_bytes_of_their_format() -> None:
    case, all_cold = problem(), np.ones((2, 4), np.int8)
    placed = Placement(all_cold, homes(case), dtype_LN=all_cold * np.int8(3))
    plan = make_plan(case, placed, "x", "y")
    dag = build_dag(tiny_spec(2, 4), plan, True)
    read = case.formats["int8"].bytes * case.formats["int8"].read_share
    half = predict_schedule(case, plan, Fetch(share=0.5).schedule(dag, plan, HARDWARE))
    assert half.layers[1].fetched_s == pytest.approx(0.4 * read / 5e9)
    assert half.layers[1].cold_s == pytest.approx(0.4 * read / 10e9)
    assert dag.node["fetch.1"].work == dag.node["cold.1"].work
    assert sum(vars(dag.node["cold.1"].work.bytes).values()) == read


def test_over_firing_costs_gate_rows_and_missing_saves_them() -> None:
    case = problem()
    exact = CostModel(case).bytes_LN
    np.testing.assert_allclose(exact, case.activations_LN * RECORD)
    gate_first = CostModel(replace(case, predictor_density_L=np.ones(2)))
    np.testing.assert_allclose(gate_first.proposed_LN, 1.0)
    np.testing.assert_allclose(gate_first.bytes_LN, (1 / 3 + 2 / 3 * case.activations_LN) * RECORD)
    over = CostModel(replace(case, predictor_density_L=np.array([0.75, 0.6])))
    np.testing.assert_allclose(over.proposed_LN.mean(axis=1), [0.75, 0.6])
    under = CostModel(replace(case, predictor_density_L=np.array([0.25, 0.1])))
    np.testing.assert_allclose(under.bytes_LN, exact / 2)
    two_rows = CostModel(replace(case, predictor_density_L=np.ones(2), gate_share=0.5))
    np.testing.assert_allclose(two_rows.bytes_LN[0], [192, 144, 96, 144])


def test_modules_in_host_memory_come_over_pcie_but_predictors_are_computed_there() -> None:
    case = replace(tiny_problem(2, 4, vram=2**30, hardware=HARDWARE, predictor_bytes_L=[1000, 0]))
    near, far = (
        CostModel(case).dense(homes(case, attention=where))[0] for where in ("gpu0", "cpu0")
    )
    attention = next(m.bytes for m in case.modules if m.name == "attention.1")
    assert far[1] - near[1] == pytest.approx(attention * (1 / 5e9 - 1 / 100e9))
    there = CostModel(case).dense(homes(case, predictor="cpu0"))[0]
    assert there[0] - near[0] == pytest.approx(1000 * (1 / 10e9 - 1 / 100e9))


def test_a_batch_reads_the_union_and_arithmetic_may_limit() -> None:
    pair = problem(batch=2)
    np.testing.assert_allclose(CostModel(pair).bytes_LN[1], 0.36 * RECORD)
    weak = problem(hardware=replace(HARDWARE, host_gflops=1.0))
    assert CostModel(weak).cold_s_per_byte == pytest.approx(0.5e-9)  # 2 flops on 4 bytes
    # Where arithmetic is the bound, a batch takes as long as its sequences one after the other.
    cold_LN = np.ones(weak.shape, bool)
    alone, batch = (CostModel(replace(weak, batch=n)).neurons("cold", cold_LN) for n in (1, 8))
    assert batch.sum() == pytest.approx(8 * alone.sum())


def test_plans_and_placements_are_told_alike() -> None:
    plan = tiny_plan(np.array([[0, 1], [1, 0]], np.int8))
    case = tiny_problem(2, 2, vram=2**40)
    placement = Placement(np.array(plan.device_LN), dict(plan.modules))
    assert predict(case, plan) == predict(case, placement)


def test_a_schedule_changes_what_is_awaited_and_what_comes_over_the_bus() -> None:
    case = problem()
    modules = homes(case)
    plan = make_plan(case, Placement(SPLIT, modules), "test", "model")
    dag = build_dag(tiny_spec(2, 4), plan, predicts=True)
    chosen = {"selective": Selective(), "paper": Paper(), "serial": Serial(), "half": Fetch(0.5)}
    chosen["all"] = Fetch(1.0)
    times = {
        name: predict_schedule(case, plan, policy.schedule(dag, plan, HARDWARE))
        for name, policy in chosen.items()
    }
    assert times["selective"] == predict(case, plan)
    assert times["paper"] == predict(case, plan, selective=False)
    first = times["paper"].layers[0]
    late = times["serial"].layers[0]
    assert late.total_s - first.total_s == pytest.approx(min(first.hot_s, first.cold_s))
    half, everything = times["half"].layers[0], times["all"].layers[0]
    # Neuron 3 of the cold 2 and 3 is fetched: it fires half the time, its peer never.
    assert half.fetched_s == pytest.approx(0.5 * RECORD / 5e9)
    assert half.cold_s == pytest.approx(0, abs=1e-15) and half.exchange_s == 0
    assert half.total_s == pytest.approx(half.dense_s + half.hot_s + half.fetched_s)
    assert everything.fetched_s == half.fetched_s and everything.exchange_s == 0
    assert times["half"].layers[1] == times["selective"].layers[1]


def test_what_is_read_ahead_is_hidden_behind_attention() -> None:
    case = problem()
    placed = Placement(SPLIT[::-1].copy(), homes(case))  # cold neurons in the second layer
    plan = make_plan(case, placed, "test", "model")
    dag = build_dag(tiny_spec(2, 4), plan, predicts=True)
    plain, ahead = (
        predict_schedule(case, plan, Lookahead(read_ahead=on).schedule(dag, plan, HARDWARE))
        for on in (False, True)
    )
    assert plain == predict(case, plan)
    hidden_s = CostModel(case).by_layer(placed.modules, ("attention", "kv"))[1]
    cold_s = plain.layers[1].cold_s
    assert cold_s > 0 and hidden_s > 0
    assert ahead.layers[1].cold_s == pytest.approx(max(cold_s - hidden_s, 0))
    assert ahead.layers[0] == plain.layers[0] and ahead.rest_s == plain.rest_s
    two_cores = replace(HARDWARE, has_gpu=False)
    schedule = Lookahead().schedule(dag, plan, HARDWARE)
    slow = replace(case, hardware=two_cores)
    assert predict_schedule(slow, plan, schedule) == predict_schedule(
        slow, plan, replace(schedule, read_ahead=False)
    )
