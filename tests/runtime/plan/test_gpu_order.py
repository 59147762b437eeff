"""What a GPU would not keep of a schedule is refused; what it accepts, its stream does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.problems import tiny_plan, tiny_spec
from support.schedules import placements, schedules

from hotcold.native.abi.generated import Op
from hotcold.native.abi.names import OPS
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.model import block
from hotcold.runtime.plan.dag import Dag, build_dag
from hotcold.runtime.plan.fetch import idle_nodes
from hotcold.runtime.plan.gpu_order import unkept
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.program import Program, compile_programs, fuse, in_turn
from hotcold.runtime.plan.schedule import Schedule, all_edges, check_schedule, in_order

LAYERS, NEURONS = 3, 40
LAYOUT = SegmentLayout.build(LAYERS, 16, NEURONS, 4)
PARALLEL = (
    block.norm("ffn_norm", "h", "x"),
    block.norm("attention_norm", "h", "a"),
    block.attend("a"),
    block.ffn("x"),
)


def graph(device_LN: Any, predicts: bool = True, blocks: Any = block.PRE_NORM) -> tuple[Dag, Plan]:
    plan = tiny_plan(device_LN)
    return build_dag(tiny_spec(LAYERS, block=blocks), plan, predicts), plan


def programs_of(dag: Dag, plan: Plan, made: Schedule) -> dict[str, Program]:
    return compile_programs(dag, made, LAYOUT, idle_nodes(plan, made.fetch))


def mixed() -> Any:
    """Layer 0 all hot, the others hot and cold."""
    device_LN = np.zeros((LAYERS, NEURONS), np.int8)
    device_LN[1:, ::2] = 1
    return device_LN


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"after": (("cold.1", "hot.1"),)}, "hot.1 wait for cold.1; .*at merges only"),
        ({"after": (("cold.1", "predict.2"),)}, "predict.2 wait for cold.1; .*at merges only"),
        ({"after": (("attention.0", "cold.2"),)}, "cold.2 wait for attention.0; .*with cold neur"),
        (
            {"sorted": (0, 0, 2), "after": (("predict.2", "hot.0"),)},
            "hot.0 wait for predict.2; a GPU computes hot.0 first",
        ),
        (
            {"sorted": (0, 0, 2), "after": (("attention.1", "predict.2"),)},
            "predict.2 wait for attention.1; a GPU computes predict.2 first",
        ),
        (
            {"lookahead": (0, 0, 2)},  # by its order the predictor makes layer 1's before
            "predict.2 wait for predict.1; a GPU computes predict.2 first",
        ),
        ({"threads": {"gpu0": 2}}, "lane 'gpu0' 2 threads"),
        ({"threads": {"predictor": 3}}, "lane 'predictor' 3 threads"),
    ],
)
def test_what_a_gpu_does_not_keep_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    gate_first = change.get("after") == (("attention.0", "cold.2"),)  # a step has two waits
    dag, plan = graph(mixed(), predicts=not gate_first)
    fields = {name: value for name, value in change.items() if name != "sorted"}
    made = replace(in_order(dag, lookahead=change.get("sorted")), **fields)
    check_schedule(dag, made)
    with pytest.raises(AssertionError, match=says):
        assert not unkept(dag, made, programs_of(dag, plan, made))


def test_a_predictor_of_its_own_process_is_known_where_its_layer_begins() -> None:
    dag, plan = graph(mixed())
    early = replace(in_order(dag), lookahead=(0, 0, 1), after=(("predict.2", "attention.2"),))
    check_schedule(dag, early)
    programs = programs_of(dag, plan, early)
    assert unkept(dag, early, programs) is None
    said = unkept(dag, early, programs, remote=True)
    assert said == "lets attention.2 wait for predict.2; a GPU computes attention.2 first"


def test_what_a_gpu_keeps() -> None:
    dag, plan = graph(mixed())
    plain = in_order(dag, sync="selective")
    for remote in (False, True):
        for made in (
            plain,
            replace(plain, lookahead=(0, 1, 1), read_ahead=True, threads={"cpu0": 3, "gpu0": 1}),
            replace(in_order(dag, lookahead=(0, 0, 2)), after=(("cold.1", "cold.2"),)),
        ):
            check_schedule(dag, made)
            assert unkept(dag, made, programs_of(dag, plan, made), remote) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data(), st.booleans(), st.sampled_from([block.PRE_NORM, PARALLEL]))
def test_what_is_accepted_the_stream_does(data: Any, predicts: bool, blocks: Any) -> None:
    dag, plan = graph(data.draw(placements(LAYERS, NEURONS)), predicts, blocks)
    made = replace(data.draw(schedules(dag, 2)), threads={})
    programs = programs_of(dag, plan, made)
    if unkept(dag, made, programs):
        return
    for first in ("gpu", "cpu"):
        place = walked(dag, programs, first)
        for source, target in all_edges(dag, made):
            if source in place and target in place:
                assert place[source] < place[target]


def walked(dag: Dag, programs: dict[str, Program], first: str) -> dict[str, int]:
    """When each node is done if waits are those of the stream and one of both sides hurries."""
    stream = fuse(programs["gpu"], programs["predictor"])
    merges = stream[stream["op"] == Op.MERGE]
    told = merges["layer"][(merges["wait"][:, 1:] >= 0).any(axis=1)]
    for step in stream:
        step["wait"][0 if step["op"] == Op.MERGE else slice(None)] = -1  # of others' sums alone
        if step["layer"] not in told:
            step["signal"] = -1
    both: dict[str, Program] = {"gpu": stream, "cpu": programs["cpu"]}
    both = {actor: both[actor] for actor in sorted(both, key=lambda one: one != first)}
    return {_id(both[actor][at]): when for when, (actor, at) in enumerate(in_turn(both))}


def _id(step: Any) -> str:
    return f"{OPS[step['op']]}.{step['layer']}"
