"""The work of operators by hand, and where it is carried."""

import numpy as np
import pytest
from support.problems import tiny_plan, tiny_spec

from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.plan.dag import build_dag
from hotcold.runtime.plan.program import compile_programs, work_of
from hotcold.runtime.plan.schedule import in_order
from hotcold.runtime.plan.work import (
    ModelWork,
    Terms,
    Work,
    matrices_bytes,
    predict_work,
    predictor_bytes,
)
from hotcold.runtime.predictors.predictor import ABOVE_ZERO, PredictorLayer, SignLayer, WindowLayer

GATED = tiny_spec(dtype="float16")  # D 16, 4 heads of 4, 2 of keys and values, V 50, N 40
PLAIN = tiny_spec(gated=False, biases=True, norm="layer", embed_dim=10, positions="learned")
MATRICES = PredictorLayer(
    np.zeros((3, 16), np.float16), np.zeros((40, 3), np.float16), None, True, 0.0
)


def test_operators_by_hand() -> None:
    work = ModelWork(GATED, kv_bytes=2)
    weights = 16 * (16 + 8 + 8 + 16)  # q, k, v, o
    attention = Work(
        Terms(weights * 2 + 2 * 16 * 4, position=2 * 8 * 2), Terms(2 * weights, position=4 * 16)
    )
    assert work.attention == attention
    assert work.neurons == Work(Terms(proposed=32, fired=64), Terms(proposed=32, fired=64))
    assert work.head == Work(Terms(50 * 16 * 2 + 64), Terms(2 * 50 * 16))
    assert work.embed == work.merge == work.input == Work()
    assert work.hot == work.cold == work.neurons


def test_biases_layer_norms_and_projections_count() -> None:
    work = ModelWork(PLAIN)
    norm = 16 * 4 * 2
    assert work.attention.bytes.fixed == 16 * 48 * 4 + (32 + 16) * 4 + 2 * norm
    assert work.neurons.bytes == Terms(proposed=16 * 4 + 4, fired=16 * 4)
    assert work.merge.bytes.fixed == 16 * 4
    assert work.embed.bytes.fixed == 10 * 16 * 4
    assert work.head == Work(Terms((50 * 10 + 10 * 16) * 4 + norm), Terms(2 * (50 * 10 + 160)))


def test_gates_that_are_sent_are_not_read_and_a_gpu_reads_up_rows_beside_them() -> None:
    assert ModelWork(GATED, gates_sent=True).cold.bytes == Terms(fired=64)
    beside = ModelWork(GATED, up_with_gate=True)
    assert (beside.hot.bytes, beside.cold.bytes) == (Terms(0, 0, 64, 32), Terms(0, 0, 32, 64))
    assert ModelWork(PLAIN, up_with_gate=True).hot == ModelWork(PLAIN).neurons


def test_predictions_by_form() -> None:
    signs = SignLayer(
        np.zeros((40, 1), np.uint64), np.ones(40, np.float32), None, np.ones(16, np.float32), 4, 0.0
    )
    gates = PredictorLayer(None, None, None, False, ABOVE_ZERO)
    window = WindowLayer(4, 4, np.zeros(40, np.float32), 0.5)
    assert predict_work(GATED, MATRICES) == Work(Terms(3 * 56 * 2), Terms(2 * 3 * 56))
    assert predict_work(GATED, signs) == Work(Terms(40 * 12 + 64), Terms(2 * 16 * 40))
    assert predict_work(GATED, gates) == Work(Terms(40 * 32), Terms(2 * 16 * 40))
    assert predict_work(GATED, window) == Work(Terms(320, proposed=32), Terms(proposed=32))
    int8 = 3 * 56 + 4 * (3 + 40)  # a scale a row
    assert predictor_bytes(GATED, MATRICES, int8=True) == matrices_bytes(GATED, 3, "int8") == int8
    assert predictor_bytes(GATED, signs, int8=True) == signs.bytes


def test_nodes_and_steps_carry_it() -> None:
    device_LN = np.zeros((3, 40), np.int8)
    device_LN[:, ::2] = 1
    work = ModelWork(GATED, predict_L=(predict_work(GATED, MATRICES),) * 3)
    dag = build_dag(GATED, tiny_plan(device_LN), True, work)
    for kind in ("attention", "hot", "cold", "merge"):
        assert dag.node[f"{kind}.1"].work == getattr(work, kind)
    assert dag.node["fetch.1"].work == work.hot and dag.node["predict.1"].work == work.predict_L[1]
    assert dag.node["hot.0"].work.bytes.at(proposed=3, fired=2) == pytest.approx(3 * 32 + 2 * 64)
    programs = compile_programs(dag, in_order(dag), SegmentLayout.build(3, 16, 40, 4))
    embed, attention, *_, head = programs["gpu"]
    assert (work_of(embed), work_of(attention), work_of(head)) == (
        *(work.embed, work.attention, work.head),
    )
    assert work_of(programs["predictor"][2]) == work.predict_L[2]
    assert {work_of(step) for step in programs["cpu"]} == {work.cold}


def test_a_graph_of_no_deployment_counts_predictions_as_free() -> None:
    dag = build_dag(GATED, tiny_plan(np.zeros((3, 40), np.int8)), True)
    assert dag.node["predict.0"].work == Work() and dag.node["hot.0"].work == ModelWork(GATED).hot
