"""The operator graph of one token: attention, predict, hot, cold, merge of every layer.

Built from a plan, read by schedule policies and by the compiler of programs. A node says where it
may run and what it costs on average; the order is the schedule's business. hot(l) and cold(l) exist
only where that device owns neurons of layer l, and fetch(l) where cold(l) does; a schedule need not
use it.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.plan import Plan

Kind = Literal["attention", "predict", "hot", "cold", "fetch", "merge"]
PREDICTOR = "predictor"  # the lane of the predictor actor, beside the plan's devices


@dataclass(frozen=True)
class Node:
    """One operator of one layer.

    Args:
        id: kind and layer, such as "attention.3".
        kind: attention (norm, projections, residual), predict (the active set), hot and cold
            (neurons of the GPU and of the CPU executor, each computed whole by its owner), fetch
            (the share of the cold ones, set by the schedule, that the GPU executor reads over the
            bus and computes instead), merge (the sum of all).
        layer: of the model.
        device_choices: lanes it may be put on, the usual one first.
        bytes: weights and KV read for one token, on average by the plan's firing probabilities; of
            a fetch, if all cold neurons were fetched.
        flops: floating-point operations for one token, likewise.
    """

    id: str
    kind: Kind
    layer: int
    device_choices: tuple[str, ...]
    bytes: int
    flops: int


@dataclass(frozen=True)
class Dag:
    """Nodes in an order that respects the edges; an edge (a, b) means b reads what a wrote."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    n_layers: int

    @cached_property
    def node(self) -> dict[str, Node]:
        """Nodes by id."""
        return {node.id: node for node in self.nodes}

    @property
    def lanes(self) -> tuple[str, ...]:
        """Every lane that some node may be put on."""
        return tuple(dict.fromkeys(lane for node in self.nodes for lane in node.device_choices))


def build_dag(spec: ModelSpec, plan: Plan, predicts: bool) -> Dag:
    """The graph of one token.

    Args:
        spec: the model.
        plan: where its neurons are; of the same shape.
        predicts: whether a predictor makes active lists; if not, the executors evaluate the gate
            row of every neuron they own and there are no predict nodes.
    """
    nodes: list[Node] = []
    edges: list[tuple[str, str]] = []
    gpu = plan.devices[0]
    for layer in range(spec.n_layers):
        if layer:
            edges.append((f"merge.{layer - 1}", f"attention.{layer}"))
        nodes.append(_attention(spec, plan, layer))
        shares = _shares(spec, plan, layer, predicts)
        if predicts:
            nodes.append(_predict(spec, plan, layer))
            edges.append((f"attention.{layer}", f"predict.{layer}"))
        for share in shares:
            nodes.append(share)
            edges.append((f"attention.{layer}", share.id))
            if predicts:
                edges.append((f"predict.{layer}", share.id))
            edges.append((share.id, f"merge.{layer}"))
            if share.kind == "cold":
                fetch = replace(share, id=f"fetch.{layer}", kind="fetch", device_choices=(gpu,))
                nodes.append(fetch)
                edges += [(a, fetch.id) for a, b in edges if b == share.id]
                edges.append((fetch.id, f"merge.{layer}"))
        d = spec.d_model
        nodes.append(Node(f"merge.{layer}", "merge", layer, (gpu,), 8 * d, len(shares) * d))
        edges.append((f"attention.{layer}", f"merge.{layer}"))  # the residual stream
    return Dag(tuple(nodes), tuple(edges), spec.n_layers)


def _attention(spec: ModelSpec, plan: Plan, layer: int) -> Node:
    """Projections, and a KV cache that is half full on average."""
    elements = 2 * (spec.q_dim + spec.kv_dim) * spec.d_model
    positions = plan.context / 2
    kv_bytes = 2 * positions * spec.kv_dim * 4
    return Node(
        f"attention.{layer}",
        "attention",
        layer,
        (plan.devices[0],),
        bytes=round(elements * spec.element_bytes + kv_bytes),
        flops=round(2 * elements + 4 * spec.q_dim * positions),
    )


def _predict(spec: ModelSpec, plan: Plan, layer: int) -> Node:
    """The predictor's own matrices; without any, the gate rows (exact prediction)."""
    gate_rows = spec.n_neurons * spec.d_model * spec.element_bytes
    size = plan.module_bytes.get(f"predictor.{layer}", 0) or gate_rows
    flops = 2 * size // spec.element_bytes
    return Node(f"predict.{layer}", "predict", layer, (PREDICTOR,), size, flops)


def _shares(spec: ModelSpec, plan: Plan, layer: int, predicts: bool) -> list[Node]:
    """Hot and cold of a layer, those whose device owns any of its neurons."""
    kinds: tuple[Kind, Kind] = ("hot", "cold")
    record = int(plan.neuron_bytes_L[layer])
    nodes = []
    for index, kind in enumerate(kinds):
        ids = plan.ids(layer, index)
        if not len(ids):
            continue
        fired = float(plan.activations_LN[layer, ids].sum())
        # Of a record's rows one is the gate's; the others are touched where the gate fired.
        rows = spec.neuron_rows
        records = fired if predicts else (len(ids) + (rows - 1) * fired) / rows
        nodes.append(
            Node(
                f"{kind}.{layer}",
                kind,
                layer,
                (plan.devices[index],),
                bytes=round(records * record),
                flops=round(records * 2 * rows * spec.d_model),
            )
        )
    return nodes
