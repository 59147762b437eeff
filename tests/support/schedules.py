"""Legal schedules drawn at random, and what a run of one must show."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from hotcold.native.abi.names import OPS
from hotcold.native.errors import PolicyError
from hotcold.runtime.engine.deployment import Deployment, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import Prepared
from hotcold.runtime.plan.dag import Dag, build_dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.program import fuse
from hotcold.runtime.plan.schedule import Schedule, all_edges, check_schedule, data_edges
from hotcold.runtime.topology import CLASSIC, Topology
from hotcold.runtime.tracing.spans import Span, read

SHARES = (0.0, 0.0, 0.4, 1.0)
BETWEEN_PASSES_NS = 50_000  # a clock's error is of the last pass, others may have had a larger one


@dataclass(frozen=True)
class Given:
    """Policy of a placement and of a schedule that are there already."""

    device_LN: NDArray[np.int8]
    made: Schedule | None = None

    def place(self, problem: Any) -> Any:
        """All modules on the GPU."""
        filled = problem.fill(np.zeros(problem.shape))
        return type(filled)(self.device_LN, dict.fromkeys(filled.modules, "gpu0"))

    def schedule(self, dag: Any, plan: Any, hardware: Any) -> Any:
        """The one."""
        return self.made


@st.composite
def placements(
    draw: st.DrawFn, layers: int, neurons: int, topology: Topology = CLASSIC
) -> NDArray[np.int8]:
    """Layers that are all hot, all cold or mixed, in any sequence, on any devices of each kind."""
    shares = draw(st.lists(st.sampled_from((0.0, 0.5, 1.0)), min_size=layers, max_size=layers))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    cold_LN = random.random((layers, neurons)) >= np.array(shares)[:, None]
    hot, cold = np.arange(topology.gpus), topology.gpus + np.arange(topology.cpus)
    device_LN = np.empty((layers, neurons), np.int8)
    for layer in range(layers):  # some devices of a layer may have nothing to do
        for kind, own_N in ((hot, ~cold_LN[layer]), (cold, cold_LN[layer])):
            some = random.choice(kind, random.integers(1, len(kind), endpoint=True), replace=False)
            device_LN[layer, own_N] = random.choice(some, own_N.sum())
    return device_LN


@st.composite
def schedules(draw: st.DrawFn, dag: Dag, ahead: int) -> Schedule:
    """Any that check_schedule lets through; predictions at most `ahead` layers early."""
    layers = range(dag.n_layers)
    lookahead = tuple(
        draw(st.integers(0, min(layer, ahead))) if f"predict.{layer}" in dag.node else 0
        for layer in layers
    )
    fetch = tuple(
        draw(st.sampled_from(SHARES)) if f"fetch.{layer}" in dag.node else 0.0 for layer in layers
    )
    order = _order(draw, dag, lookahead, fetch)
    lane = {id_: draw(st.sampled_from(dag.node[id_].device_choices)) for id_ in order}
    lanes = sorted(set(lane.values()))
    made = Schedule(
        lane=lane,
        order={name: tuple(id_ for id_ in order if lane[id_] == name) for name in lanes},
        sync=tuple(draw(st.sampled_from(("always", "selective"))) for _ in layers),
        lookahead=lookahead,
        threads=draw(st.dictionaries(st.sampled_from(lanes), st.integers(1, 3))),
        fetch=fetch if any(fetch) else (),
        read_ahead=draw(st.booleans()),
    )
    check_schedule(dag, made)
    places = st.tuples(*(st.integers(0, len(order) - 1),) * 2).map(sorted)
    for first, second in draw(st.lists(places, max_size=12)):
        more = replace(made, after=(*made.after, (order[first], order[second])))
        try:
            check_schedule(dag, more)
        except PolicyError:
            continue
        made = more
    return made


def _order(
    draw: st.DrawFn, dag: Dag, lookahead: Sequence[int], fetch: Sequence[float]
) -> list[str]:
    """Nodes one after the other, each behind those it reads; fetch right behind its hot node."""
    glued = {f"hot.{i}": f"fetch.{i}" for i, share in enumerate(fetch) if share}
    glued = {hot: taken for hot, taken in glued.items() if hot in dag.node}
    unused = {f"fetch.{i}" for i, share in enumerate(fetch) if not share}
    left = [n.id for n in dag.nodes if n.id not in unused | set(glued.values())]
    rank = {id_: at for at, id_ in enumerate(draw(st.permutations(left)))}
    edges = [edge for edge in data_edges(dag, lookahead, fetch) if set(edge) <= set(left)]
    order: list[str] = []
    while left:
        blocked = {target for source, target in edges if source in left}
        following = min((id_ for id_ in left if id_ not in blocked), key=rank.__getitem__)
        left.remove(following)
        order += [following, *([glued[following]] if following in glued else [])]
    return order


def plan_of(prepared: Prepared, device_LN: NDArray[np.int8]) -> tuple[Plan, Dag]:
    """The plan of a placement, and its graph."""
    plan = solve(prepared, Given(device_LN))
    return plan, build_dag(prepared.bundle.spec, plan, prepared.predicts, prepared.work)


def steps_of(deployment: Deployment, actor: str) -> list[tuple[str, int]]:
    """Operations and layers of an actor's pass, in their order."""
    programs, gpu = deployment.programs, deployment.gpu
    steps = programs[actor]
    if gpu is not None and actor == "predictor":
        return []  # its steps are in the GPU executor's stream
    if gpu is not None and actor == "gpu":
        steps = fuse(steps, programs["predictor"])
    return [(OPS[step["op"]], int(step["layer"])) for step in steps]


def _ids_by_step(
    deployment: Deployment, dag: Dag, made: Schedule
) -> dict[tuple[str, str, int], str]:
    """Hot and cold nodes by actor, operation and layer."""
    topology = deployment.topology
    return {
        (topology.owner(made.lane[node.id]).actor, node.kind, node.layer): node.id
        for node in dag.nodes
        if node.device >= 0
    }


def check_run(
    deployment: Deployment, dag: Dag, made: Schedule, oracle: Any, ids: Sequence[int]
) -> NDArray[np.float32]:
    """The masked oracle's logits, which are returned; of every pass the steps of the program.

    Spans say that an actor's steps came in its program's order, one span a step, and that no step
    was ready before those were done for which the schedule lets it wait.
    """
    with LocalSession(deployment) as local:
        logits, masks_TLN = local.logits(ids)
        passes = -(-len(ids) // deployment.layout.max_batch)
        until = time.monotonic() + 5  # a step's span is put down after its signal
        while True:
            spans = {actor: read(local.segment, actor) for actor in deployment.programs}
            missing = any(
                deployment.gpu is None and len(spans[actor]) < passes * len(steps)
                for actor, steps in deployment.programs.items()
            )
            if not missing or time.monotonic() > until:
                break
        error_ns = local.segment.actor_state("gpu").clock_error_ns
    ids_of = _ids_by_step(deployment, dag, made)
    expected = oracle.forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    seen: dict[tuple[int, str], Span] = {}
    for actor, found in spans.items():
        steps = steps_of(deployment, actor)
        order: dict[int, list[tuple[str, int]]] = {}
        for span in found:
            step, before = (span.op, span.layer), order.setdefault(span.seq, [])
            # On a GPU the partial sums of hot neurons may have a span of their own.
            if deployment.gpu is None or step not in before:
                before.append(step)
                id_ = ids_of.get((actor, *step), f"{span.op}.{span.layer}")
                seen[span.seq, id_] = span
        assert order == (dict.fromkeys(range(1, passes + 1), steps) if steps else {}), actor
    slack_ns = 2 * error_ns + BETWEEN_PASSES_NS if deployment.gpu else 0
    handed = {(node.id, f"merge.{node.layer}") for node in dag.nodes if node.hands_over}
    waits = set(all_edges(dag, made)) - handed
    for source, target in waits:  # a merge need not wait for a sum of nothing
        for seq in range(1, passes + 1):
            first, second = seen.get((seq, source)), seen.get((seq, target))
            if first and second:
                assert first.end_ns <= second.ready_ns + slack_ns, (source, target)
    return logits
