"""The operator graph of one token: input, attention, predict, hot, cold, merge of every layer.

Built from a plan, read by schedule policies and by the compiler of programs. A node says where it
may run, what it reads and what it computes (work.py); the order is the schedule's business, the
time the cost model's (cost.py). hot(l) and cold(l) exist once for every device that owns neurons of
layer l, and fetch(l) where a cold(l) does; a schedule need not use it. input(l) exists where
attention and feed-forward part stand side by side in a block (runtime/model/block.py): it hands x
over before attention(l) starts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hotcold.runtime.model.block import parallel
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.work import ModelWork, Work
from hotcold.runtime.topology import PREDICTOR as PREDICTOR  # noqa: PLC0414 - a lane

Kind = Literal["input", "attention", "predict", "hot", "cold", "fetch", "merge"]


@dataclass(frozen=True)
class Node:
    """One operator of one layer.

    Args:
        id: kind and layer, such as "attention.3"; of a kind's second device on that device, too,
            such as "cold.3.cpu1".
        kind: input (the feed-forward part's, by its norm, in parallel blocks), attention (its norm,
            projections, residual; in other blocks x as well), predict (the active set), hot and
            cold (neurons of a GPU and of a CPU executor, each computed whole by its owner),
            fetch (the share of the cold ones, set by the schedule, that the GPU executor reads over
            the bus and computes instead), merge (the sum of all).
        device_choices: lanes it may be put on, the usual one first.
        work: bytes it reads and operations, as coefficients.
        device: hot and cold: the owner of the neurons, an index into the plan's devices; else -1.
    """

    id: str
    kind: Kind
    layer: int
    device_choices: tuple[str, ...]
    work: Work = Work()
    device: int = -1

    @property
    def hands_over(self) -> bool:
        """Whether it computes a sum that another device merges: the first one's stays there."""
        return self.device > 0


@dataclass(frozen=True)
class Dag:
    """Nodes in an order that respects the edges; an edge (a, b) means b reads what a wrote.

    embed, head: the work before the first layer and after the last.
    """

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    n_layers: int
    x_from: Kind = "attention"  # the node of a layer that hands x over
    embed: Work = Work()
    head: Work = Work()

    @cached_property
    def node(self) -> dict[str, Node]:
        """Nodes by id."""
        return {node.id: node for node in self.nodes}

    def of(self, kind: Kind, layer: int) -> tuple[str, ...]:
        """Ids of a layer's nodes of a kind, in the order of their devices."""
        return self._by_kind.get((kind, layer), ())

    @cached_property
    def _by_kind(self) -> dict[tuple[str, int], tuple[str, ...]]:
        found: dict[tuple[str, int], tuple[str, ...]] = {}
        for node in self.nodes:
            key = node.kind, node.layer
            found[key] = (*found.get(key, ()), node.id)
        return found

    @property
    def lanes(self) -> tuple[str, ...]:
        """Every lane that some node may be put on."""
        return tuple(dict.fromkeys(lane for node in self.nodes for lane in node.device_choices))


def node_id(kind: str, layer: int, plan: Plan, device: int) -> str:
    """The id of a hot or cold node of a plan's graph."""
    first = device in (0, plan.gpus)
    return f"{kind}.{layer}" if first else f"{kind}.{layer}.{plan.devices[device]}"


def build_dag(spec: ModelSpec, plan: Plan, predicts: bool, work: ModelWork | None = None) -> Dag:
    """The graph of one token.

    Without a predictor the executors evaluate the gate row of every neuron they own and there are
    no predict nodes. work: of the model as it is deployed; None: predictions count as free.
    """
    work = work or ModelWork(spec)
    nodes: list[Node] = []
    edges: list[tuple[str, str]] = []
    lead = plan.devices[0]

    def put(node: Node, inputs: list[str]) -> str:
        nodes.append(node)
        edges.extend((source, node.id) for source in inputs)
        return node.id

    def add(kind: Kind, layer: int, lane: str, *inputs: str) -> str:
        return put(Node(f"{kind}.{layer}", kind, layer, (lane,), work.of(kind, layer)), [*inputs])

    def share(kind: Kind, layer: int, device: int, inputs: list[str]) -> str:
        made = work.stored(plan.format(layer, device)).of(kind, layer)
        lane, id_ = (plan.devices[device],), node_id(kind, layer, plan, device)
        return put(Node(id_, kind, layer, lane, made, device), inputs)

    x_from: Kind = "input" if parallel(spec.block) else "attention"
    for layer in range(spec.n_layers):
        if layer:
            edges.append((f"merge.{layer - 1}", f"{x_from}.{layer}"))
        if x_from == "input":
            add("attention", layer, lead, add("input", layer, lead))
        else:
            add("attention", layer, lead)
        inputs = [f"{x_from}.{layer}"]
        if predicts:
            inputs.append(add("predict", layer, PREDICTOR, *inputs))
        summed = [f"attention.{layer}"]  # the residual stream
        owners = [device for device in range(len(plan.devices)) if len(plan.ids(layer, device))]
        summed += [share("hot", layer, d, inputs) for d in owners if d < plan.gpus]
        cold = [device for device in owners if device >= plan.gpus]
        summed += [share("cold", layer, device, inputs) for device in cold]
        if cold:
            made = work.stored(plan.format(layer, cold[0])).of("fetch", layer)
            summed.append(put(Node(f"fetch.{layer}", "fetch", layer, (lead,), made), inputs))
        add("merge", layer, lead, *summed)
    return Dag(tuple(nodes), tuple(edges), spec.n_layers, x_from, work.embed, work.head)
