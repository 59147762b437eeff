"""compile(dag, schedule, layout): from a schedule to the flat program each actor's loop runs.

A step waits for the flags of its producers on other lanes, computes, and sets its own flag. It
carries the work of its node (work.py), which the native counters add. From here on there is no
Python per layer: `native/loop/pass.c` runs the steps. Called once a plan, by `deployment.py`; the
programs are plain arrays that travel to the actors.

Why the merge of an executor's last layer is never selective: it is the barrier that lets the next
pass reuse every flag and payload of this one (segment.py, and the checker in the tests).
"""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import STEP, Op, StepFlag, Term
from hotcold.native.abi.names import OPS, words
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.plan.dag import Dag, Node
from hotcold.runtime.plan.schedule import Schedule, all_edges, flag_kind
from hotcold.runtime.plan.work import Terms, Work

_OP_OF = {**words(Op), "fetch": Op.HOT}  # by kind of node

Program = NDArray[Any]  # of dtype STEP
Slot = tuple[int, int]  # offset in the segment, bytes


def compile_programs(
    dag: Dag, schedule: Schedule, layout: SegmentLayout, idle: Collection[str] = ()
) -> dict[str, Program]:
    """One program an actor; an actor without work gets an empty one and stands by.

    Nodes of `idle`, which the schedule leaves nothing to compute (fetch.py), become no steps.
    """
    topology = layout.topology
    programs: dict[str, list[np.void]] = {actor: [] for actor in topology.actors}
    builder = _Compiler(dag, schedule, layout, idle)
    for lane, order in schedule.order.items():
        steps = [dag.node[id_] for id_ in order if builder.is_step(dag.node[id_])]
        programs[topology.owner(lane).actor] = [builder.step(node) for node in steps]
    embed, head = _bare(Op.EMBED, dag.embed), _bare(Op.HEAD, dag.head)
    leader = topology.leader.actor
    programs[leader] = [embed, *programs[leader], head]
    return {actor: np.array(steps, dtype=STEP) for actor, steps in programs.items()}


def _bare(op: Op, work: Work) -> Any:
    step = np.zeros((), dtype=STEP)
    step["op"], step["layer"], step["wait"], step["signal"] = op, -1, -1, -1
    step["x"] = step["active"] = step["y"] = step["device"] = -1
    for term in Term:
        step["bytes"][term] = getattr(work.bytes, term.name.lower())
        step["flops"][term] = getattr(work.flops, term.name.lower())
    return step


def work_of(step: Any) -> Work:
    """What a step carries."""
    return Work(Terms(*step["bytes"].tolist()), Terms(*step["flops"].tolist()))


class _Compiler:
    def __init__(
        self, dag: Dag, schedule: Schedule, layout: SegmentLayout, idle: Collection[str]
    ) -> None:
        self.dag, self.schedule, self.layout = dag, schedule, layout
        unused = {n.id for n in dag.nodes if n.kind == "fetch" and n.id not in schedule.lane}
        self.idle = unused | set(idle)
        handed = sorted(
            (node.layer, node.device)
            for node in dag.nodes
            if node.hands_over and node.id not in self.idle
        )
        self.barriers = {device: layer for layer, device in handed}.values()  # the last of each
        self.handed: dict[int, list[int]] = {}
        for layer, device in handed:
            self.handed.setdefault(layer, []).append(device)

    def kept(self, kind: str, layer: int) -> bool:
        """Whether the leader computes its node of a kind in a layer."""
        id_ = f"{kind}.{layer}"
        return id_ in self.dag.node and id_ not in self.idle

    def is_step(self, node: Node) -> bool:
        """Whether a node is a step of its own: it has work, and no hot node that does it along."""
        along = node.kind == "fetch" and self.kept("hot", node.layer)
        return node.id not in self.idle and not along

    def step(self, node: Node) -> Any:
        """The step of a node: flags from its edges, offsets from the layout."""
        step, layer = _bare(_OP_OF[node.kind], node.work), node.layer
        slots = self.layout.layers[layer]
        predicted = self.kept("predict", layer)
        devices = len(slots.y)
        step["layer"], step["x"], step["y"][:devices] = layer, slots.x, slots.y
        step["device"] = 0 if node.kind == "fetch" else node.device
        if node.kind == "predict":
            step["x"] = self.layout.layers[layer - self.schedule.lookahead[layer]].x
        if predicted:
            step["active"][:devices] = slots.active
        step["flags"] = self._flags(node, predicted)
        waits = self._merged(layer, predicted) if node.kind == "merge" else self._waits(node)
        step["wait"][: len(waits)] = waits
        if flag_kind(self.dag, node) is not None:
            step["signal"] = self._flag(node)
        return step

    def _flag(self, node: Node) -> int:
        """The one that a node sets."""
        return self.layout.flag(flag_kind(self.dag, node) or "", node.layer, node.device)

    def _merged(self, layer: int, predicted: bool) -> list[int]:
        """A merge's: that of the lists, which it reads, and by device that of its sum."""
        waits = [-1] * (1 + len(self.layout.topology.devices))
        if predicted:
            waits[0] = self.layout.flag("active", layer)
        for device in self.handed.get(layer, ()):
            waits[1 + device] = self.layout.flag("y", layer, device)
        return waits

    def _flags(self, node: Node, predicted: bool) -> int:
        layer = node.layer
        if node.kind == self.dag.x_from:
            return StepFlag.RESIDUAL if self.layout.with_residual else 0
        if node.kind in ("hot", "cold", "fetch"):
            early = node.kind == "cold" and self.schedule.lookahead[layer] > 0
            ahead = StepFlag.AHEAD if early and self.schedule.read_ahead else 0
            return ahead if predicted else StepFlag.ALL
        if node.kind != "merge":
            return 0
        own = self.kept("hot", layer) or self.kept("fetch", layer)
        selective = self.schedule.sync[layer] == "selective" and layer not in self.barriers
        selective = selective and predicted and layer in self.handed
        return StepFlag.HOT * own | StepFlag.SELECTIVE * selective

    def _waits(self, node: Node) -> list[int]:
        """Flags of the producers on other lanes; x's comes before the list's."""
        lane = self.schedule.lane[node.id]
        edges = all_edges(self.dag, self.schedule)
        producers = [self.dag.node[a] for a, b in edges if b == node.id and a not in self.idle]
        others = {
            (p.kind, p.layer, p.device): p
            for p in producers
            if self.schedule.lane[p.id] != lane and flag_kind(self.dag, p) is not None
        }
        return [self._flag(others[key]) for key in sorted(others)]


def step_slots(step: Any, layout: SegmentLayout, batch: int) -> tuple[list[Slot], list[Slot]]:
    """Segment ranges a step reads and writes across lanes, for the Ray transport."""
    op, d = OPS[step["op"]], layout.d_model
    rows = layout.max_batch + batch if layout.with_residual else batch
    x = [(int(step["x"]), rows * d * 4)]
    lists = [(int(at), layout.active_bytes) for at in step["active"] if at >= 0]
    sums = [(int(at), batch * d * 4) for at in step["y"]]
    device = int(step["device"])
    if op in ("hot", "cold"):
        reads = (x if device else []) + (lists[device : device + 1] if lists else [])
        return reads, sums[device : device + 1] if device else []
    if op == "merge":
        return [sums[d] for d in range(len(sums)) if step["wait"][1 + d] >= 0] + lists, []
    if op == "predict":
        return x, lists
    handed = x if op in ("input", "attention") and step["signal"] >= 0 else []
    return [], handed


def fuse(gpu: Program, predictor: Program) -> Program:
    """The GPU executor's program where it predicts as well, in the graph that it captures.

    A layer's own prediction follows the step that hands its x over. One that is early comes before
    the merge of the layer whose x it reads, so that it fills the wait for the cold sum; in a
    parallel block before attention, which changes the residual stream that it may read.
    """
    layer_of = {int(step["x"]): int(step["layer"]) for step in gpu if step["signal"] >= 0}
    own: dict[int, list[np.void]] = {}
    early: dict[int, list[np.void]] = {}
    for step in predictor:
        at = layer_of[int(step["x"])]
        (own if at == step["layer"] else early).setdefault(at, []).append(step)
    fused: list[np.void] = []
    for step in gpu:
        layer, hands_over = int(step["layer"]), step["signal"] >= 0
        if step["op"] == Op.MERGE:
            fused += early.pop(layer, [])
        fused.append(step)
        if hands_over:
            fused += own.pop(layer, [])
        if hands_over and step["op"] == Op.INPUT:
            fused += early.pop(layer, [])
    return np.array(fused, dtype=STEP)


def in_turn(programs: dict[str, Program]) -> Iterator[tuple[str, int]]:
    """(actor, step index) in an order where every producer comes first."""
    ready: set[int] = {-1}
    at = dict.fromkeys(programs, 0)
    while any(at[actor] < len(steps) for actor, steps in programs.items()):
        moved = False
        for actor, steps in programs.items():
            while at[actor] < len(steps) and ready.issuperset(steps[at[actor]]["wait"].tolist()):
                ready.add(int(steps[at[actor]]["signal"]))
                yield actor, at[actor]
                at[actor] += 1
                moved = True
        if not moved:
            raise RuntimeError("programs wait for flags nobody sets; check_schedule missed a cycle")
