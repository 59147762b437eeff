"""roofline: the least time that a token of a plan can take on a machine, part by part.

Bytes over rates, as in the cost model (cost.py) that it uses. What the cost model leaves out,
because no placement changes it, is added here: the gaps between the nodes of the GPU's graph, the
part of the budget that a CUDA context takes, and that both executors share one memory on a machine
without a GPU. One token, layers in order:

    token     attention + predictor + KV + head, each over the rate of where it lies
              + sum over layers of max(hot, cold)   (hot + cold where both read one memory)
              + exchange: T_sync a layer in which a cold neuron is proposed
              + gaps: nodes of the graph times the gap between two

Where lists come a layer early and their records are read ahead (schedule `lookahead` beside a GPU),
cold neurons are read while attention runs, and a layer is predicted while the cold sum of the one
before is awaited. The sum over layers is then of max(hot + next prediction, cold - attention). The
size of the caches (native/ops/ahead.c) is not taken into account.

Half of the KV cache counts: the mean of a context that fills up. Neurons count with the mean of the
activation profile; real loads vary, and max(hot, cold) is then larger. So this is a lower bound of
the time and not a forecast; it assumes kernels as fast as the measured bandwidth.

Used by `hotcold roofline`. Nothing is measured here; what runs reach of it, and what is missing to
it, is in runtime/bench/MEASURED.md.

A measured run may exceed the bound a little where 40 + 64 tokens fill less than half of the KV
cache. `--bus-share` (neurons that the GPU reads over the bus) is not modelled: each neuron is read
where it lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hotcold.native.errors import ConfigError
from hotcold.runtime.plan.cost import CostModel
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.problem import Placement, Problem
from hotcold.runtime.units import format_bytes

# Nodes of a captured pass (native/cuda/executor/graph.cu): qkv, attention, o; norm or split; merge.
NODES_LAYER, NODES_PREDICTOR, NODES_HOT, NODES_ONCE = 5, 2, 2, 3
FFN_PARTS = ("hot_s", "cold_s")
KINDS = {"attention": "attention", "predictor": "predictor", "kv": "kv"}  # the rest: "head"


@dataclass(frozen=True)
class Roofline:
    """The bound of one token, seconds and bytes by part.

    Args:
        parts_s: attention, predictor, kv, head, ffn, exchange, gaps: their sum is the token.
        hot_s, cold_s: what `ffn` is made of, each summed over the layers.
        bytes: read for a token: attention, predictor, kv, head, hot, cold.
        neuron_bytes: the same of neurons alone, by device.
        elsewhere: modules that do not lie on the GPU's device.
    """

    parts_s: Mapping[str, float]
    hot_s: float
    cold_s: float
    bytes: Mapping[str, float]
    elsewhere: tuple[str, ...]
    neuron_bytes: Mapping[str, float]

    @property
    def token_s(self) -> float:
        """The least time of a token."""
        return sum(self.parts_s.values())

    @property
    def tokens_per_s(self) -> float:
        """The bound on decode speed of one sequence of the problem's batch."""
        return 1 / self.token_s


def roofline(
    problem: Problem, placed: Placement | Plan, selective: bool = True, ahead: bool = False
) -> Roofline:
    """The bound of a placement or plan of this problem.

    With `ahead` lists come a layer early and their records are read meanwhile; of no effect without
    a GPU, where memory is busy meanwhile. `selective` is as in CostModel.

    Raises:
        ConfigError: the plan is for another model.
    """
    _check_same(problem, placed)
    cost, hardware = CostModel(problem, selective, placed.dtype_LN), problem.hardware
    token = cost.token(placed.device_LN, placed.modules)
    parts = dict.fromkeys(("attention", "predictor", "kv", "head"), 0.0)
    sizes = dict.fromkeys(parts, 0.0)
    for module in problem.modules:
        kind = KINDS.get(module.kind, "head")
        parts[kind] += cost.module_s(module, placed.modules[module.name])
        sizes[kind] += module.bytes * module.read_share
    hot_LN = placed.device_LN < problem.gpus
    for name, own_LN in (("hot", hot_LN), ("cold", ~hot_LN)):
        sizes[name] = float(cost.bytes_LN[own_LN].sum())
    together = sum if hardware.in_turn else max
    parts["ffn"] = sum(together((layer.hot_s, layer.cold_s)) for layer in token.layers)
    if ahead and hardware.has_gpu:
        early = [0] + [1] * (len(token.layers) - 1)  # the first layer's list comes with its input
        hidden = cost.read_ahead(placed.modules, early)
        guess = cost.by_layer(placed.modules, ("predictor",))
        guess, parts["predictor"] = np.append(guess[1:], 0.0), float(guess[0])
        hot, cold = (np.array([getattr(x, name) for x in token.layers]) for name in FFN_PARTS)
        parts["ffn"] = float(np.maximum(hot + guess, np.maximum(cold - hidden, 0.0)).sum())
    parts["exchange"] = sum(layer.exchange_s for layer in token.layers)
    parts["gaps"] = hardware.gap_s * graph_nodes(problem, placed) if hardware.has_gpu else 0.0
    first = problem.devices[0]
    return Roofline(
        parts,
        sum(layer.hot_s for layer in token.layers),
        sum(layer.cold_s for layer in token.layers),
        sizes,
        tuple(name for name, home in placed.modules.items() if home != first),
        {
            device: float(cost.bytes_LN[placed.device_LN == index].sum())
            for index, device in enumerate(problem.devices)
        },
    )


def graph_nodes(problem: Problem, placed: Placement | Plan) -> int:
    """Kernels one after the other in the GPU's graph of a token."""
    hot_layers = int((placed.device_LN == 0).any(axis=1).sum())
    predictors = sum(module.kind == "predictor" for module in problem.modules)
    layers = problem.shape[0]
    return NODES_LAYER * layers + NODES_HOT * hot_layers + NODES_PREDICTOR * predictors + NODES_ONCE


def for_gpu(
    problem: Problem, vram_bytes: int | None | Sequence[int | None], scratch_bytes: int
) -> Problem:
    """The problem with the budgets that context and scratch leave on a GPU; None: enough for all.

    Raises:
        ConfigError: context and scratch alone exceed the budget.
    """
    modules = sum(module.bytes for module in problem.modules)
    everything = modules + int(problem.neuron_bytes_L.sum()) * problem.shape[1]
    reserve = problem.hardware.context_bytes + scratch_bytes
    given = vram_bytes if isinstance(vram_bytes, Sequence) else [vram_bytes] * problem.gpus
    for size in given:
        if size is not None and size < reserve:
            raise ConfigError(
                f"--vram {size} bytes is less than the {reserve} bytes ({format_bytes(reserve)}) "
                "that the CUDA context and a pass's scratch take; raise --vram"
            )
    rooms = [everything if size is None else size - reserve for size in given]
    return replace(
        problem, budgets={**problem.budgets, **dict(zip(problem.devices, rooms, strict=False))}
    )


def for_batch(problem: Problem, batch: int) -> Problem:
    """The problem with as many sequences decoded together, each with its own KV cache."""
    modules = tuple(
        replace(module, bytes=module.bytes // problem.batch * batch)
        if module.kind == "kv"
        else module
        for module in problem.modules
    )
    return replace(problem, batch=batch, modules=modules)


def _check_same(problem: Problem, placed: Placement | Plan) -> None:
    names = {module.name for module in problem.modules}
    if np.shape(placed.device_LN) != problem.shape or set(placed.modules) != names:
        missing = sorted(names ^ set(placed.modules))
        raise ConfigError(
            f"the plan is for {np.shape(placed.device_LN)} neurons"
            f"{f' and differs in {missing[0]}' if missing else ''}, the problem has "
            f"{problem.shape}; give the options the plan was solved with"
        )
