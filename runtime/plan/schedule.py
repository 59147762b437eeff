"""Schedule: which lane computes a node, in which order, and when executors wait for each other.

A schedule policy makes one from a graph and a plan; `check_schedule` refuses what cannot run and
names the offending edge; the compiler of programs turns it into flat steps. It is static: the same
steps for every token. The only decision at run time is to skip an exchange in which no cold neuron
fired. fetch.py says which neurons a share of `fetch` means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

from hotcold.native.abi.generated import MAX_WAITS
from hotcold.native.errors import PolicyError
from hotcold.runtime.plan.dag import Dag, Node

Sync = Literal["always", "selective"]


@dataclass(frozen=True)
class Schedule:
    """A static program of one token, by lane.

    Lookahead lets the predictor of a layer start early: with k it reads the input of layer l - k
    instead of layer l. To look one layer ahead on all layers but the first:

        from dataclasses import replace
        from hotcold.runtime.plan.schedule import in_order

        class Ahead:
            def schedule(self, dag, plan, hardware):
                ahead = (0,) + (1,) * (dag.n_layers - 1)
                return replace(in_order(dag, sync="selective"), lookahead=ahead)

    Args:
        lane: by node id, the device or "predictor" that computes it.
        order: by lane, the ids of its nodes, first to last.
        sync: by layer. "always": the merge waits for all executors; "selective": not for those
            none of whose neurons is active.
        lookahead: by layer, how many layers early its prediction is made.
        threads: by lane, threads that compute there; a lane that is not named keeps the engine's.
        fetch: by layer, the share of its cold neurons that the GPU executor computes, reading them
            over the bus, 0 to 1; empty: none. Where it is above 0, fetch.l is run, right after
            hot.l (both are one step); elsewhere there is no need to list it. `fetching` does that.
        after: further pairs (a, b): b does not start before a is done, though it reads nothing of
            it. Across lanes only an attention (input, where there is one), predict or cold node, or
            a hot one of a further GPU executor, can be waited for, since only these set a flag, and
            no node waits for more than eight flags.
        read_ahead: the CPU executor reads the records of a list that comes early into its caches
            while it waits for the layer's input. Worth it where memory is idle meanwhile: beside a
            GPU.
    """

    lane: Mapping[str, str]
    order: Mapping[str, Sequence[str]]
    sync: Sequence[Sync]
    lookahead: Sequence[int]
    merge_on: str = "gpu0"
    threads: Mapping[str, int] = field(default_factory=dict)
    after: Sequence[tuple[str, str]] = ()
    fetch: Sequence[float] = ()
    read_ahead: bool = False


def in_order(dag: Dag, sync: Sync = "always", lookahead: Sequence[int] | None = None) -> Schedule:
    """The plain schedule: every node on its usual lane, layer after layer.

    "selective" applies to the layers in which a sum is handed over, the others keep "always".
    `lookahead` is by layer; None: 0 everywhere. Predictions come in the order of the inputs they
    read.
    """
    ahead = tuple(lookahead) if lookahead is not None else (0,) * dag.n_layers
    used = [node for node in dag.nodes if node.kind != "fetch"]
    early = sorted(
        (node for node in used if node.kind == "predict"),
        key=lambda node: (node.layer - ahead[node.layer], node.layer),
    )
    lane = {node.id: node.device_choices[0] for node in used}
    order: dict[str, list[str]] = {}
    for node in (*(node for node in used if node.kind != "predict"), *early):
        order.setdefault(lane[node.id], []).append(node.id)
    handed = {node.layer for node in dag.nodes if node.hands_over}
    return Schedule(
        lane=lane,
        order={name: tuple(ids) for name, ids in order.items()},
        sync=tuple(sync if layer in handed else "always" for layer in range(dag.n_layers)),
        lookahead=ahead,
        merge_on=next(lane[node.id] for node in dag.nodes if node.kind == "merge"),
    )


def fetching(dag: Dag, schedule: Schedule, share_L: Sequence[float]) -> Schedule:
    """The schedule with shares of the cold neurons fetched, fetch(l) right after hot(l).

    Shares are from 0 to 1, and of no effect in layers without cold neurons.
    """
    share_L = tuple(
        float(share) if f"fetch.{layer}" in dag.node else 0.0 for layer, share in enumerate(share_L)
    )
    order = {name: list(ids) for name, ids in schedule.order.items()}
    lane = dict(schedule.lane)
    for layer, share in enumerate(share_L):
        if not share:
            continue
        lane[f"fetch.{layer}"] = home = dag.node[f"fetch.{layer}"].device_choices[0]
        ids = order[home]
        ids.insert(ids.index(f"merge.{layer}"), f"fetch.{layer}")
        if f"hot.{layer}" in ids:
            ids.remove(f"fetch.{layer}")
            ids.insert(ids.index(f"hot.{layer}") + 1, f"fetch.{layer}")
    return replace(
        schedule,
        lane=lane,
        order={name: tuple(ids) for name, ids in order.items()},
        fetch=share_L,
    )


def data_edges(
    dag: Dag, lookahead: Sequence[int], fetch: Sequence[float] = ()
) -> list[tuple[str, str]]:
    """The graph's edges under a lookahead: predict(l) reads the x of layer l - lookahead[l].

    Edges of fetch(l) exist where something is fetched.
    """
    edges = []
    for source, target in dag.edges:
        node = dag.node[target]
        if any(_unused(dag.node[id_], fetch) for id_ in (source, target)):
            continue
        if node.kind == "predict":
            edges.append((f"{dag.x_from}.{node.layer - lookahead[node.layer]}", target))
        else:
            edges.append((source, target))
    return edges


def flag_kind(dag: Dag, node: Node) -> str | None:
    """The kind of flag by which a node tells other lanes that it is done; None: it tells nobody."""
    return "y" if node.hands_over else {dag.x_from: "x", "predict": "active"}.get(node.kind)


def all_edges(dag: Dag, schedule: Schedule) -> list[tuple[str, str]]:
    """Everything a node waits for: the data it reads, and nodes that the schedule puts before."""
    edges = data_edges(dag, schedule.lookahead, schedule.fetch)
    unused = {node.id for node in dag.nodes if _unused(node, schedule.fetch)}
    return edges + [(a, b) for a, b in schedule.after if not {a, b} & unused]


def _unused(node: Node, fetch: Sequence[float]) -> bool:
    return node.kind == "fetch" and not (fetch and fetch[node.layer])


def check_schedule(dag: Dag, schedule: Any, blame: str = "schedule") -> None:
    """Refuse a schedule that cannot run.

    Raises:
        PolicyError: one sentence naming the policy, the node or edge, and what would be right.
    """
    if not isinstance(schedule, Schedule):
        kind = "nothing" if schedule is None else f"an object of type {type(schedule).__name__}"
        fault: str | None = f"returned {kind}; schedule() must return a Schedule"
    else:
        fault = (
            _type_fault(schedule)
            or _layer_fault(dag, schedule)
            or _lane_fault(dag, schedule)
            or _order_fault(dag, schedule)
            or _after_fault(dag, schedule)
            or _edge_fault(dag, schedule)
        )
    if fault is not None:
        raise PolicyError(f"policy {blame!r} {fault}")


def _type_fault(schedule: Schedule) -> str | None:
    for name in ("lane", "order", "threads"):
        if not isinstance(getattr(schedule, name), Mapping):
            return f"returned {name} of type {type(getattr(schedule, name)).__name__}, not a dict"
    lists: dict[str, object] = {"sync": schedule.sync, "lookahead": schedule.lookahead}
    lists |= {"after": schedule.after, "fetch": schedule.fetch}
    lists |= {f"order[{lane!r}]": ids for lane, ids in schedule.order.items()}
    for name, value in lists.items():
        if not isinstance(value, (list, tuple)):
            return f"returned {name} of type {type(value).__name__}, not a list or tuple"
    odd = [node for ids in schedule.order.values() for node in ids if not isinstance(node, str)]
    if odd:
        return f"orders {odd[0]!r}; nodes are named by their id, such as 'attention.0'"
    if not isinstance(schedule.read_ahead, bool):
        return f"has read_ahead {schedule.read_ahead!r}; it must be True or False"
    for lane, count in schedule.threads.items():
        if not _is_count(count) or not 1 <= count <= 1024:
            return f"gives lane {lane!r} {count!r} threads; it must be from 1 to 1024"
    return None


def _layer_fault(dag: Dag, schedule: Schedule) -> str | None:
    lists: dict[str, Sequence[Any]] = {"sync": schedule.sync, "lookahead": schedule.lookahead}
    lists |= {"fetch": schedule.fetch} if schedule.fetch else {}
    for name, values in lists.items():
        if len(values) != dag.n_layers:
            return f"returned {len(values)} entries of {name} for {dag.n_layers} layers"
    for layer, sync in enumerate(schedule.sync):
        if sync not in get_args(Sync):
            return f"has sync {sync!r} for layer {layer}; it must be 'always' or 'selective'"
    for layer, ahead in enumerate(schedule.lookahead):
        if not _is_count(ahead) or not 0 <= ahead <= layer:
            return f"has lookahead {ahead!r} for layer {layer}; it must be from 0 to {layer}"
    for layer, share in enumerate(schedule.fetch):
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 <= share <= 1:
            return f"has fetch {share!r} for layer {layer}; it must be a share from 0 to 1"
        if share and f"fetch.{layer}" not in dag.node:
            return f"fetches in layer {layer}, which has no cold neurons"
    return None


def _lane_fault(dag: Dag, schedule: Schedule) -> str | None:
    unknown = [node for node in schedule.lane if node not in dag.node]
    if unknown:
        return f"puts {unknown[0]!r} on a lane, but the graph has no such node"
    for node in dag.nodes:
        lane = schedule.lane.get(node.id)
        if lane is None and _unused(node, schedule.fetch):
            continue
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
    seen: set[str] = set()
    for lane, ids in schedule.order.items():
        for node in ids:
            if node not in dag.node:
                return f"orders {node!r} on lane {lane!r}, but the graph has no such node"
            if schedule.lane.get(node) != lane:
                return f"orders {node!r} on lane {lane!r}, its lane is {schedule.lane.get(node)!r}"
            if node in seen:
                return f"orders {node!r} twice"
            seen.add(node)
    unused = {node.id for node in dag.nodes if _unused(node, schedule.fetch)}
    missing = [node for node in dag.nodes if node.id not in seen | unused]
    if not missing:
        return _fetch_fault(dag, schedule)
    # Name a merge first: without it the layer has no output at all.
    first = next((node for node in missing if node.kind == "merge"), missing[0])
    return f"never runs {first.id!r}; add it to order[{schedule.lane[first.id]!r}]"


def _fetch_fault(dag: Dag, schedule: Schedule) -> str | None:
    for layer, share in enumerate(schedule.fetch):
        hot, fetch = f"hot.{layer}", f"fetch.{layer}"
        if not share or hot not in dag.node:
            continue
        ids = list(schedule.order[schedule.lane[hot]])
        if ids[ids.index(hot) + 1 : ids.index(hot) + 2] != [fetch]:
            return f"runs {fetch} apart from {hot}; they are one step, order it right after {hot}"
    return None


def _after_fault(dag: Dag, schedule: Schedule) -> str | None:
    waits: dict[str, set[str]] = {}
    for pair in schedule.after:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
            return f"has {pair!r} in after; it holds pairs of node ids"
        for id_ in pair:
            if not isinstance(id_, str) or id_ not in dag.node:
                return f"orders {pair[0]!r} -> {pair[1]!r}, but the graph has no node {id_!r}"
        source, target = (dag.node[id_] for id_ in pair)
        if _unused(source, schedule.fetch) or _unused(target, schedule.fetch):
            continue
        if schedule.lane[source.id] == schedule.lane[target.id]:
            continue
        edge = f"{source.id} -> {target.id}"
        if flag_kind(dag, source) is None:
            kinds = dict.fromkeys(n.kind for n in dag.nodes if flag_kind(dag, n) is not None)
            return f"orders {edge} across lanes; only {', '.join(kinds)} can be waited for there"
        if target.kind == "merge":
            return f"orders {edge}; a merge waits for its own layer only, put it before the next"
        waits.setdefault(target.id, set()).add(source.id)
    edges = data_edges(dag, schedule.lookahead, schedule.fetch) if waits else []
    for source_id, target_id in edges:
        if target_id in waits and schedule.lane[source_id] != schedule.lane[target_id]:
            waits[target_id].add(source_id)
    for target_id, sources in waits.items():
        if len(sources) > MAX_WAITS:
            names = " and ".join(sorted(sources))
            return f"lets {target_id} wait for {names}; a node waits for at most {MAX_WAITS} flags"
    return None


def _edge_fault(dag: Dag, schedule: Schedule) -> str | None:
    edges = all_edges(dag, schedule)
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
    # Every stuck node waits for another stuck node, so walking backwards must find a cycle.
    before = {target: node for node in sorted(stuck) for target in after[node] if target in stuck}
    path = [min(stuck)]
    while path[-1] not in path[:-1]:
        path.append(before[path[-1]])
    return path[path.index(path[-1]) :][::-1]


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's too
