"""Schedule: which lane computes a node, in what order, and when executors wait for each other.

A schedule policy makes one from a graph and a plan; `check_schedule` refuses what cannot run, by
the edge that offends; the compiler of programs turns it into flat steps. It is static: the same
steps for every token, nothing is stolen or decided at run time but the skip of an exchange in which
no cold neuron fired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, get_args

from hotcold.runtime.dag import Dag
from hotcold.runtime.errors import PolicyError

Sync = Literal["always", "selective"]


@dataclass(frozen=True)
class Schedule:
    """A static program of one token, by lane.

    Lookahead lets the predictor of a layer start early: with k it reads the input of layer l - k
    instead of layer l. To look one layer ahead on all layers but the first:

        from dataclasses import replace
        from hotcold.runtime.schedule import in_order

        class Ahead:
            def schedule(self, dag, plan, hardware):
                ahead = (0,) + (1,) * (dag.n_layers - 1)
                return replace(in_order(dag, sync="selective"), lookahead=ahead)

    Args:
        lane: by node id, the device or "predictor" that computes it.
        order: by lane, the ids of its nodes, first to last.
        sync: by layer. "always": the merge waits for the CPU executor; "selective": it does not
            where no cold neuron is active.
        lookahead: by layer, how many layers early its prediction is made.
        merge_on: the device that merges.
        threads: by lane, threads that compute there; a lane that is not named keeps the engine's.
    """

    lane: Mapping[str, str]
    order: Mapping[str, Sequence[str]]
    sync: Sequence[Sync]
    lookahead: Sequence[int]
    merge_on: str = "gpu0"
    threads: Mapping[str, int] = field(default_factory=dict)


def in_order(dag: Dag, sync: Sync = "always", lookahead: Sequence[int] | None = None) -> Schedule:
    """The plain schedule: every node on its usual lane, layer after layer.

    Args:
        dag: the graph.
        sync: "selective" applies to the layers that have cold neurons, the others keep "always".
        lookahead: by layer; None: 0 everywhere.
    """
    lane = {node.id: node.device_choices[0] for node in dag.nodes}
    order: dict[str, list[str]] = {}
    for node in dag.nodes:
        order.setdefault(lane[node.id], []).append(node.id)
    cold = {node.layer for node in dag.nodes if node.kind == "cold"}
    return Schedule(
        lane=lane,
        order={name: tuple(ids) for name, ids in order.items()},
        sync=tuple(sync if layer in cold else "always" for layer in range(dag.n_layers)),
        lookahead=tuple(lookahead) if lookahead is not None else (0,) * dag.n_layers,
        merge_on=next(lane[node.id] for node in dag.nodes if node.kind == "merge"),
    )


def data_edges(dag: Dag, lookahead: Sequence[int]) -> list[tuple[str, str]]:
    """The graph's edges under a lookahead: predict(l) reads attention(l - lookahead[l])."""
    edges = []
    for source, target in dag.edges:
        node = dag.node[target]
        if node.kind == "predict":
            edges.append((f"attention.{node.layer - lookahead[node.layer]}", target))
        else:
            edges.append((source, target))
    return edges


def check_schedule(dag: Dag, schedule: Any, blame: str = "schedule") -> None:
    """Refuse a schedule that cannot run.

    Args:
        dag: the graph.
        schedule: whatever the policy returned.
        blame: name of the policy.

    Raises:
        PolicyError: one sentence naming the policy, the node or edge, and what would be right.
    """
    if not isinstance(schedule, Schedule):
        kind = "nothing" if schedule is None else f"a {type(schedule).__name__}"
        fault: str | None = f"returned {kind}; schedule() must return a Schedule"
    else:
        fault = (
            _type_fault(schedule)
            or _layer_fault(dag, schedule)
            or _lane_fault(dag, schedule)
            or _order_fault(dag, schedule)
            or _edge_fault(dag, schedule)
        )
    if fault is not None:
        raise PolicyError(f"policy {blame!r} {fault}")


def _type_fault(schedule: Schedule) -> str | None:
    """Containers of the wrong kind, before anything looks into them."""
    for name in ("lane", "order", "threads"):
        if not isinstance(getattr(schedule, name), Mapping):
            return f"returned {name} of type {type(getattr(schedule, name)).__name__}, not a dict"
    lists: dict[str, object] = {"sync": schedule.sync, "lookahead": schedule.lookahead}
    lists |= {f"order[{lane!r}]": ids for lane, ids in schedule.order.items()}
    for name, value in lists.items():
        if not isinstance(value, (list, tuple)):
            return f"returned {name} of type {type(value).__name__}, not a list or tuple"
    odd = [node for ids in schedule.order.values() for node in ids if not isinstance(node, str)]
    if odd:
        return f"orders {odd[0]!r}; nodes are named by their id, such as 'attention.0'"
    for lane, count in schedule.threads.items():
        if not _is_count(count) or not 1 <= count <= 1024:
            return f"gives lane {lane!r} {count!r} threads; it must be from 1 to 1024"
    return None


def _layer_fault(dag: Dag, schedule: Schedule) -> str | None:
    """Sync and lookahead: one valid entry a layer."""
    for name, values in (("sync", schedule.sync), ("lookahead", schedule.lookahead)):
        if len(values) != dag.n_layers:
            return f"returned {len(values)} entries of {name} for {dag.n_layers} layers"
    for layer, sync in enumerate(schedule.sync):
        if sync not in get_args(Sync):
            return f"has sync {sync!r} for layer {layer}; it must be 'always' or 'selective'"
    for layer, ahead in enumerate(schedule.lookahead):
        if not _is_count(ahead) or not 0 <= ahead <= layer:
            return f"has lookahead {ahead!r} for layer {layer}; it must be from 0 to {layer}"
    return None


def _lane_fault(dag: Dag, schedule: Schedule) -> str | None:
    """Every node on one lane that may compute it, and merges where merge_on says."""
    unknown = [node for node in schedule.lane if node not in dag.node]
    if unknown:
        return f"puts {unknown[0]!r} on a lane, but the graph has no such node"
    for node in dag.nodes:
        lane = schedule.lane.get(node.id)
        if lane is None:
            return f"gives {node.id!r} no lane" + (
                ": the layer would never be merged" if node.kind == "merge" else ""
            )
        if lane not in node.device_choices:
            choices = " or ".join(node.device_choices)
            return f"puts {node.id!r} on lane {lane!r}; it can run on {choices}"
        if node.kind == "merge" and lane != schedule.merge_on:
            return f"puts {node.id!r} on lane {lane!r} but merges on {schedule.merge_on!r}"
    unknown = [lane for lane in (*schedule.order, *schedule.threads) if lane not in dag.lanes]
    return f"names a lane {unknown[0]!r}; there are {', '.join(dag.lanes)}" if unknown else None


def _order_fault(dag: Dag, schedule: Schedule) -> str | None:
    """Every node exactly once, in the order of its own lane."""
    seen: set[str] = set()
    for lane, ids in schedule.order.items():
        for node in ids:
            if node not in dag.node:
                return f"orders {node!r} on lane {lane!r}, but the graph has no such node"
            if schedule.lane[node] != lane:
                return f"orders {node!r} on lane {lane!r}, its lane is {schedule.lane[node]!r}"
            if node in seen:
                return f"orders {node!r} twice"
            seen.add(node)
    missing = [node for node in dag.nodes if node.id not in seen]
    if not missing:
        return None
    # The one that is a merge is the one to name: without it the layer has no output at all.
    first = next((node for node in missing if node.kind == "merge"), missing[0])
    return f"never runs {first.id!r}; add it to order[{schedule.lane[first.id]!r}]"


def _edge_fault(dag: Dag, schedule: Schedule) -> str | None:
    """A consumer before its producer, on one lane or round a cycle through several."""
    edges = data_edges(dag, schedule.lookahead)
    place = {node: (lane, i) for lane, ids in schedule.order.items() for i, node in enumerate(ids)}
    for source, target in edges:
        if place[source][0] == place[target][0] and place[source][1] > place[target][1]:
            lane = place[source][0]
            return f"runs {target} before {source} on lane {lane}, against {source} -> {target}"
    after: dict[str, list[str]] = {node.id: [] for node in dag.nodes}
    for source, target in edges:
        after[source].append(target)
    for ids in schedule.order.values():
        for source, target in zip(ids, ids[1:], strict=False):
            after[source].append(target)
    cycle = find_cycle(after)
    if not cycle:
        return None
    offending = next(edge for edge in zip(cycle, cycle[1:], strict=False) if edge in set(edges))
    return (
        f"never ends: {offending[0]} -> {offending[1]} closes a cycle of data and lane order, "
        f"{' -> '.join(cycle)}"
    )


def find_cycle(after: Mapping[str, Sequence[str]]) -> list[str]:
    """A cycle of a directed graph, its first node repeated at the end; empty if there is none."""
    waits = {node: 0 for node in after}
    for targets in after.values():
        for target in targets:
            waits[target] += 1
    ready = [node for node, count in waits.items() if not count]
    while ready:
        for target in after[ready.pop()]:
            waits[target] -= 1
            if not waits[target]:
                ready.append(target)
    stuck = {node for node, count in waits.items() if count}
    if not stuck:
        return []
    # Whatever is stuck waits for a stuck node: walking backwards must meet itself.
    before = {target: node for node in sorted(stuck) for target in after[node] if target in stuck}
    path = [min(stuck)]
    while path[-1] not in path[:-1]:
        path.append(before[path[-1]])
    return path[path.index(path[-1]) :][::-1]


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's too
