"""What of a schedule a GPU cannot keep: its steps are one stream of kernels, captured in a graph.

The stream runs the GPU executor's steps and, unless the predictor has a process of its own, the
predictions (program.fuse). It waits for the CPU executor at merges only, and tells it of x and of
lists only in layers that have cold neurons. A schedule that asks for more is refused by name.
"""

from collections.abc import Iterator, Mapping, Sequence

from hotcold.native.abi.names import OPS
from hotcold.runtime.plan.dag import PREDICTOR, Dag
from hotcold.runtime.plan.program import Program, fuse
from hotcold.runtime.plan.schedule import Schedule, all_edges

Span = tuple[float, float]  # when a node begins and ends, in steps of the stream


def unkept(
    dag: Dag, schedule: Schedule, programs: Mapping[str, Program], remote: bool = False
) -> str | None:
    """What a GPU would not do of a schedule, in words that follow its name; None: it does all.

    programs: compiled of it. remote: the predictor has a process of its own on the GPU.
    """
    for lane, count in schedule.threads.items():
        if lane in (PREDICTOR, schedule.merge_on) and count != 1:
            return (
                f"gives lane {lane!r} {count} threads; beside a GPU only the CPU executor's count"
            )
    stream = _stream(dag, schedule, programs, remote)
    cold = {int(step["layer"]) for step in programs["cpu"]}
    for source, target in (*all_edges(dag, schedule), *_pairs(schedule.order.get(PREDICTOR, ()))):
        first, second = dag.node[source], dag.node[target]
        said = f"lets {target} wait for {source}"
        if first.kind == "cold":
            if second.kind not in ("cold", "merge") and first.layer in cold:
                return f"{said}; a GPU waits for the CPU executor at merges only"
        elif second.kind == "cold":
            if second.layer in cold and first.layer not in cold:
                return f"{said}; a GPU tells the CPU executor of layers with cold neurons only"
        elif source in stream and target in stream:
            both_predict = first.kind == second.kind == "predict"
            if stream[source][0 if both_predict else 1] > stream[target][0]:
                return f"{said}; a GPU computes {target} first"
    return None


def _stream(
    dag: Dag, schedule: Schedule, programs: Mapping[str, Program], remote: bool
) -> dict[str, Span]:
    """When each node of the stream begins and ends; another process's predictions: asked, known."""
    gpu = programs["gpu"] if remote else fuse(programs["gpu"], programs["predictor"])
    made = {f"{OPS[step['op']]}.{step['layer']}": (at, at) for at, step in enumerate(gpu)}
    stream: dict[str, Span] = dict(made)
    for node in dag.nodes:
        if node.kind == "fetch" and f"hot.{node.layer}" in made:
            stream[node.id] = made[f"hot.{node.layer}"]
        if node.kind == "predict" and remote:
            asked = made[f"{dag.x_from}.{node.layer - schedule.lookahead[node.layer]}"][0]
            in_turn = (node.layer + 1) / (dag.n_layers + 1) / 2
            stream[node.id] = (asked + in_turn, made[f"{dag.x_from}.{node.layer}"][0] + 0.5)
    return stream


def _pairs(ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(ids, ids[1:], strict=False)
