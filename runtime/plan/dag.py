"""The operator graph of one token: input, attention, predict, hot, cold, merge of every layer.

Built from a plan, read by schedule policies and by the compiler of programs. A node says where it
may run, what it reads and what it computes (work.py); the order is the schedule's business, the
time the cost model's (cost.py). hot(l) and cold(l) exist only where that device owns neurons of
layer l, and fetch(l) where cold(l) does; a schedule need not use it. input(l) exists where
attention and feed-forward part stand side by side in a block (runtime/model/block.py): it hands x
over before attention(l) starts.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hotcold.native.abi.generated import Actor
from hotcold.runtime.model.block import parallel
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.work import ModelWork, Work

Kind = Literal["input", "attention", "predict", "hot", "cold", "fetch", "merge"]
_OWNER = {"hot": Actor.GPU, "cold": Actor.CPU, "fetch": Actor.CPU}  # by the plan: also a device
PREDICTOR = "predictor"  # the lane of the predictor actor, beside the plan's devices


@dataclass(frozen=True)
class Node:
    """One operator of one layer.

    Args:
        id: kind and layer, such as "attention.3".
        kind: input (the feed-forward part's, by its norm, in parallel blocks), attention (its norm,
            projections, residual; in other blocks x as well), predict (the active set), hot and
            cold (neurons of the GPU and of the CPU executor, each computed whole by its owner),
            fetch (the share of the cold ones, set by the schedule, that the GPU executor reads over
            the bus and computes instead), merge (the sum of all).
        device_choices: lanes it may be put on, the usual one first.
        work: bytes it reads and operations, as coefficients.
    """

    id: str
    kind: Kind
    layer: int
    device_choices: tuple[str, ...]
    work: Work = Work()


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

    @property
    def lanes(self) -> tuple[str, ...]:
        """Every lane that some node may be put on."""
        return tuple(dict.fromkeys(lane for node in self.nodes for lane in node.device_choices))


def build_dag(spec: ModelSpec, plan: Plan, predicts: bool, work: ModelWork | None = None) -> Dag:
    """The graph of one token.

    Without a predictor the executors evaluate the gate row of every neuron they own and there are
    no predict nodes. work: of the model as it is deployed; None: predictions count as free.
    """
    work = work or ModelWork(spec)
    nodes: list[Node] = []
    edges: list[tuple[str, str]] = []
    gpu, cpu = plan.devices[:2]

    def add(kind: Kind, layer: int, lane: str, *inputs: Kind) -> Kind:
        owner = _OWNER.get(kind)
        own = None if owner is None else plan.format(layer, owner)
        made = work.stored(own).of(kind, layer)
        nodes.append(Node(f"{kind}.{layer}", kind, layer, (lane,), made))
        edges.extend((f"{source}.{layer}", f"{kind}.{layer}") for source in inputs)
        return kind

    x_from: Kind = "input" if parallel(spec.block) else "attention"
    for layer in range(spec.n_layers):
        if layer:
            edges.append((f"merge.{layer - 1}", f"{x_from}.{layer}"))
        if x_from == "input":
            add("attention", layer, gpu, add("input", layer, gpu))
        else:
            add("attention", layer, gpu)
        inputs = [x_from]
        if predicts:
            inputs.append(add("predict", layer, PREDICTOR, x_from))
        summed: list[Kind] = ["attention"]  # the residual stream
        if len(plan.ids(layer, 0)):
            summed.append(add("hot", layer, gpu, *inputs))
        if len(plan.ids(layer, 1)):
            summed.append(add("cold", layer, cpu, *inputs))
            summed.append(add("fetch", layer, gpu, *inputs))
        add("merge", layer, gpu, *summed)
    return Dag(tuple(nodes), tuple(edges), spec.n_layers, x_from, work.embed, work.head)
