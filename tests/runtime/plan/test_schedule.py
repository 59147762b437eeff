from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import tiny_plan, tiny_spec

from hotcold.native.errors import PolicyError
from hotcold.runtime.plan.dag import Dag, build_dag
from hotcold.runtime.plan.schedule import (
    Schedule,
    all_edges,
    check_schedule,
    data_edges,
    fetching,
    find_cycle,
    in_order,
)


def tiny_dag(predicts: bool = True, layers: int = 3) -> Dag:
    """Layer 0 all hot, the others hot and cold."""
    device_LN = np.zeros((layers, 40), dtype=np.int8)
    device_LN[1:, ::2] = 1
    return build_dag(tiny_spec(layers), tiny_plan(device_LN), predicts)


def test_in_order() -> None:
    schedule = in_order(tiny_dag(), sync="selective")
    assert schedule.sync == ("always", "selective", "selective")
    assert schedule.lookahead == (0, 0, 0) and schedule.merge_on == "gpu0"
    assert schedule.order["cpu0"] == ("cold.1", "cold.2")
    assert schedule.order["predictor"] == ("predict.0", "predict.1", "predict.2")
    assert schedule.order["gpu0"][:4] == ("attention.0", "hot.0", "merge.0", "attention.1")
    for predicts in (True, False):
        dag = tiny_dag(predicts)
        check_schedule(dag, in_order(dag))


def test_lookahead_moves_the_edge_of_a_prediction() -> None:
    dag = tiny_dag()
    edges = data_edges(dag, (0, 1, 2))
    assert {source for source, target in edges if target.startswith("predict")} == {"attention.0"}
    check_schedule(dag, replace(in_order(dag), lookahead=(0,) + (1,) * (dag.n_layers - 1)))
    check_schedule(dag, replace(in_order(dag), lookahead=[0, np.int64(1), 2]))


def test_a_prediction_may_run_early_only_with_lookahead() -> None:
    dag = tiny_dag()
    plain = in_order(dag)
    early = replace(
        plain,
        order={**plain.order, "predictor": ("predict.0", "predict.2", "predict.1")},
    )
    with pytest.raises(PolicyError, match="closes a cycle.*predict.2"):
        check_schedule(dag, early)
    check_schedule(dag, replace(early, lookahead=(0, 0, 1)))


def swapped(ids: Any, one: str, other: str) -> tuple[str, ...]:
    names = {one: other, other: one}
    return tuple(names.get(node, node) for node in ids)


PLAIN = in_order(tiny_dag())
GPU = PLAIN.order["gpu0"]


def with_lane(**changes: Any) -> dict[str, Any]:
    return {"lane": {**PLAIN.lane, **changes}}


def with_order(**changes: Any) -> dict[str, Any]:
    return {"order": {**PLAIN.order, **changes}}


def without(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            with_order(gpu0=swapped(GPU, "attention.1", "hot.1")),
            "runs hot.1 before attention.1 on lane gpu0, against attention.1 -> hot.1",
        ),
        (
            with_order(gpu0=swapped(GPU, "merge.0", "hot.0")),
            "runs merge.0 before hot.0 on lane gpu0, against hot.0 -> merge.0",
        ),
        (with_order(cpu0=("cold.2", "cold.1")), "never ends: .* -> .* closes a cycle"),
        (with_order(gpu0=[n for n in GPU if n != "merge.1"]), "never runs 'merge.1'"),
        (with_order(cpu0=("cold.1",)), "never runs 'cold.2'; add it to order..cpu0"),
        (with_order(cpu0=("cold.1", "cold.2", "cold.1")), "orders 'cold.1' twice"),
        (with_order(cpu0=("cold.1", "cold.2", "hot.0")), "'hot.0' on lane 'cpu0', its lane is"),
        (with_order(cpu0=("cold.1", "cold.2", "cold.9")), "orders 'cold.9'.*no such node"),
        (with_order(cpu0=(1, 2)), "orders 1"),
        (with_order(cpu0=(["cold.1"], "cold.2")), "orders \\['cold.1'\\]"),
        (with_order(cpu0="cold.1"), "of type str"),
        (with_order(gpu9=()), "names a lane 'gpu9'; there are gpu0, predictor, cpu0"),
        ({"lane": without(PLAIN.lane, "merge.1")}, "gives 'merge.1' no lane.*never be merged"),
        ({"lane": without(PLAIN.lane, "hot.1")}, "gives 'hot.1' no lane"),
        (with_lane(**{"hot.9": "gpu0"}), "'hot.9' on a lane.*no such node"),
        (with_lane(**{"cold.1": "gpu0"}), "puts 'cold.1' on lane 'gpu0'; it can run on cpu0"),
        (with_lane(**{"cold.1": None}), "'cold.1' no lane"),
        ({"merge_on": "cpu0"}, "merges on 'cpu0'"),
        ({"sync": ("always",)}, "1 entries of sync for 3 layers"),
        ({"sync": ("always", "never", "always")}, "sync 'never' for layer 1"),
        ({"lookahead": (1, 0, 0)}, "lookahead 1 for layer 0; it must be from 0 to 0"),
        ({"lookahead": (0, 0, -1)}, "lookahead -1 for layer 2"),
        ({"lookahead": (0, 0, 0.5)}, "lookahead 0.5 for layer 2"),
        ({"lookahead": (0, 0, True)}, "lookahead True for layer 2"),
        ({"lookahead": 0}, "lookahead of type int"),
        ({"threads": {"cpu0": 0}}, "gives lane 'cpu0' 0 threads"),
        ({"threads": {"tpu0": 1}}, "names a lane 'tpu0'"),
        ({"lane": None}, "lane of type NoneType"),
    ],
)
def test_illegal_schedules_are_refused_by_the_offending_edge(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=f"^policy 'mine' .*{message}"):
        check_schedule(tiny_dag(), replace(PLAIN, **changes), "mine")


FETCH = fetching(tiny_dag(), PLAIN, (0.0, 0.5, 1.0))
WITH = FETCH.order["gpu0"]


def test_fetching_puts_a_node_behind_the_hot_one() -> None:
    assert WITH[4:8] == ("hot.1", "fetch.1", "merge.1", "attention.2")
    assert FETCH.fetch == (0.0, 0.5, 1.0) and "fetch.0" not in FETCH.lane
    for dag in (tiny_dag(), tiny_dag(predicts=False)):
        check_schedule(dag, fetching(dag, in_order(dag), (0.5,) * 3))
    assert ("fetch.1", "merge.1") in all_edges(tiny_dag(), FETCH)
    assert ("fetch.1", "merge.1") not in all_edges(tiny_dag(), PLAIN)
    unused = {**PLAIN.order, "gpu0": (*GPU, "fetch.1")}
    check_schedule(tiny_dag(), replace(PLAIN, lane={**PLAIN.lane, "fetch.1": "gpu0"}, order=unused))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fetch": (0.5,)}, "1 entries of fetch for 3 layers"),
        ({"fetch": (0, 1.5, 0)}, "fetch 1.5 for layer 1; it must be a share from 0 to 1"),
        ({"fetch": (0, float("nan"), 0)}, "fetch nan for layer 1"),
        ({"fetch": (0, True, 0)}, "fetch True for layer 1"),
        ({"fetch": (0.5, 0.5, 1.0)}, "fetches in layer 0, which has no cold neurons"),
        ({"fetch": 0.5}, "fetch of type float"),
        ({"lane": PLAIN.lane}, "gives 'fetch.1' no lane"),
        ({"lane": {**FETCH.lane, "fetch.1": "cpu0"}}, "puts 'fetch.1' on lane 'cpu0'"),
        (with_order(gpu0=GPU), "never runs 'fetch.1'; add it to order..gpu0"),
        (
            with_order(gpu0=swapped(WITH, "fetch.1", "merge.1")),
            "apart from hot.1; they are one step, order it right after hot.1",
        ),
        (
            with_order(gpu0=swapped(WITH, "fetch.2", "attention.2")),
            "runs fetch.2 apart from hot.2",
        ),
    ],
)
def test_fetches_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError, match=f"^policy 'mine' .*{message}"):
        check_schedule(tiny_dag(), replace(FETCH, **changes), "mine")


def test_a_fetch_without_hot_neurons_obeys_its_edges() -> None:
    dag = build_dag(tiny_spec(1), tiny_plan(np.ones((1, 40), dtype=np.int8)), True)
    plain = fetching(dag, in_order(dag), (0.5,))
    late = {**plain.order, "gpu0": ("attention.0", "merge.0", "fetch.0")}
    early = {**plain.order, "gpu0": ("fetch.0", "attention.0", "merge.0")}
    for order, edge in ((late, "fetch.0 -> merge.0"), (early, "attention.0 -> fetch.0")):
        with pytest.raises(PolicyError, match=f"on lane gpu0, against {edge}"):
            check_schedule(dag, replace(plain, order=order))


@pytest.mark.parametrize("result", [None, {}, Schedule, "schedule"])
def test_not_a_schedule(result: object) -> None:
    with pytest.raises(PolicyError, match="must return a Schedule"):
        check_schedule(tiny_dag(), result)


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_order_is_accepted_exactly_when_it_can_be_executed(random: Any) -> None:
    dag = tiny_dag(layers=2)
    plain = in_order(dag)
    order = {lane: list(ids) for lane, ids in plain.order.items()}
    for ids in order.values():
        for _ in range(random.choice([0, 0, 1, 2])):
            i = random.randrange(len(ids))
            j = min(i + 1, len(ids) - 1)
            ids[i], ids[j] = ids[j], ids[i]
    schedule = replace(plain, order=order)
    done: set[str] = set()
    edges = all_edges(dag, schedule)
    queues = {lane: list(ids) for lane, ids in order.items()}
    moved = True
    while moved:  # executes: a lane runs its next node once all that it reads is there
        moved = False
        for ids in queues.values():
            while ids and all(a in done for a, b in edges if b == ids[0]):
                done.add(ids.pop(0))
                moved = True
    if any(queues.values()):
        with pytest.raises(PolicyError):
            check_schedule(dag, schedule)
    else:
        check_schedule(dag, schedule)


def test_find_cycle() -> None:
    assert find_cycle({"a": ["b"], "b": ["c"], "c": []}) == []
    cycle = find_cycle({"x": ["a"], "a": ["b"], "b": ["c", "d"], "c": ["a"], "d": []})
    assert cycle[0] == cycle[-1] and set(cycle) == {"a", "b", "c"}
    assert all(
        b in {"a": ["b"], "b": ["c", "d"], "c": ["a"]}[a]
        for a, b in zip(cycle, cycle[1:], strict=False)
    )
    assert find_cycle({"a": ["a"]}) == ["a", "a"]


def test_after_puts_one_node_behind_another_across_lanes() -> None:
    dag = tiny_dag()
    serial = replace(in_order(dag), after=(("cold.1", "hot.1"), ("cold.2", "hot.2")))
    check_schedule(dag, serial)
    assert ("cold.1", "hot.1") in all_edges(dag, serial)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (("cold.1", "hot.1"), "has 'cold.1' in after; it holds pairs"),
        ((("cold.1", "hot.9"),), "cold.1.*hot.9.*no node 'hot.9'"),
        ((("cold.1", 3),), "no node 3"),
        ((("hot.1", "cold.1"),), "orders hot.1 -> cold.1 across lanes; only attention, predict"),
        ((("cold.1", "merge.2"),), "orders cold.1 -> merge.2; a merge waits"),
        ((("cold.1", "attention.1"),), "never ends: .*closes a cycle"),
        ((("merge.1", "attention.0"),), "runs attention.0 before merge.1 on lane gpu0"),
        (3, "after of type int"),
    ],
)
def test_orders_that_cannot_be_kept_are_refused(after: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=f"^policy 'mine' .*{message}"):
        check_schedule(tiny_dag(), replace(PLAIN, after=after), "mine")


def test_a_node_waits_for_so_many_flags_and_no_more() -> None:
    dag = tiny_dag(layers=8)
    early = [(f"attention.{layer}", "cold.7") for layer in range(7)]
    check_schedule(dag, replace(in_order(dag), after=early[:6]))
    message = "lets cold.7 wait for attention.0 and .*; a node waits for at most 8 flags"
    with pytest.raises(PolicyError, match=message):
        check_schedule(dag, replace(in_order(dag), after=early))
