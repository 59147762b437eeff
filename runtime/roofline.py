"""roofline: the least time that one token of a plan can take on a machine, part by part.

Bytes over rates, as in the cost model (cost.py), which it is made from; what that leaves out
because no placement changes it is added here: the gaps between the nodes of the GPU's graph, the
memory that a CUDA context takes of the budget, and that a machine without a GPU has one memory for
both executors. One token, layer order kept:

    token     attention + predictor + KV + head, each over the rate of where it lies
              + sum over layers of max(hot, cold)   (hot + cold where both read one memory)
              + exchange: T_sync a layer in which a cold neuron is proposed
              + gaps: nodes of the graph times the gap between two

Half of the KV cache counts: the mean of a context that fills up. Neurons are the mean of the
activation profile; real loads vary and max(hot, cold) is then larger. So this is a bound from below
on the time (how close kernels come to a copy's bandwidth is not in it) and no forecast.

Used by `hotcold roofline`. Measures nothing.

Against decoding on two cores without a GPU (`xeon-2core`, 30.4 GB/s, commit 9d4bd4a, 2026-11-22;
--context is what half-filled equals the mean filling of the run):

    model, tokens decoded        bytes a token, here / run   bound   measured   of the bound
    embedded, exact, 128               21.2 / 20.8 MB         1429    1078-1101   76 %
    planted llama-1b, learned, 32      0.79 / 0.79 GB         38.5    29.2-29.7   77 %

The bytes agree; decoding reached 22.6 to 23.4 GB/s of the 30.4 that reads of
30 KiB reach; records of the embedded model are 1.9 KiB, read at 25.0 GB/s in the same minute.

Against figures worked out by hand and measured ones: a 13B ReGLU shape, fp16, context 512, fp16 KV,
12 % fire, 30 % of the neurons hold 80 %, predictor width 960, on `h100-box`; a token reads 8.39 GB
of attention, 0.33 of head, 1.46 of predictor (int8 0.73), 0.21 of KV and 0.12 * 16.99 of FFN.
Tokens/s; measured by bench/gpu_decode.py on one H100, 2026-11-22:

    budget                   by hand   here   measured   of the bound
    all on the GPU               230    222    168-169   76 %
    16 GiB, fp16 predictor       130    126    103-104   82 %
    16 GiB, int8 predictor         -    138    107-108   78 %
    10 GiB, int8 predictor        38     42      39-42   94-100 %
    10 GiB, int8, fires 1.7x       -     35      31-34   90-98 %

The figures by hand lie between this bound with its gaps (1 us, an estimate, between 9 nodes a
layer) and without (242 and 132); at 10 GiB between the int8 predictor and the fp16 one, which does
not fit: some of it and the KV cache stay behind, and the bound is 32. Where the host is the bound
its kernels read at memory's rate. Where the GPU is, a fifth to a quarter of the time is not in this
model; the card's 3000 GB/s, too, are an estimate, 90 % of its label. A measured run may pass the
bound a little: 40 + 64 tokens fill less than the half of the KV cache that is counted, and planted
neurons are others than the synthetic law's. `--bus-share` (neurons that the GPU reads over the bus)
gave 114-117 at 16 GiB int8; here each neuron is read where it lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hotcold.runtime.cost import CostModel
from hotcold.runtime.errors import ConfigError
from hotcold.runtime.plan import Plan
from hotcold.runtime.problem import Placement, Problem

# Nodes of a captured pass (native/cuda/graph.cu): qkv, attention, o; norm or split; merge.
NODES_LAYER, NODES_PREDICTOR, NODES_HOT, NODES_ONCE = 5, 2, 2, 3
KINDS = {"attention": "attention", "predictor": "predictor", "kv": "kv"}  # the rest: "head"


@dataclass(frozen=True)
class Roofline:
    """The bound of one token, seconds and bytes by part.

    Args:
        parts_s: attention, predictor, kv, head, ffn, exchange, gaps: their sum is the token.
        hot_s, cold_s: what `ffn` is made of, each summed over the layers.
        bytes: read for a token: attention, predictor, kv, head, hot, cold.
        elsewhere: modules that do not lie on the GPU's device.
    """

    parts_s: Mapping[str, float]
    hot_s: float
    cold_s: float
    bytes: Mapping[str, float]
    elsewhere: tuple[str, ...]

    @property
    def token_s(self) -> float:
        """The least time of a token."""
        return sum(self.parts_s.values())

    @property
    def tokens_per_s(self) -> float:
        """The bound on decode speed of one sequence."""
        return 1 / self.token_s


def roofline(problem: Problem, placed: Placement | Plan, selective: bool = True) -> Roofline:
    """The bound of a placement or plan of this problem.

    Args:
        problem: model, statistics and machine.
        placed: where neurons and modules lie.
        selective: as in CostModel.

    Raises:
        ConfigError: the plan is for another model.
    """
    _check_same(problem, placed)
    cost, hardware = CostModel(problem, selective), problem.hardware
    token = cost.token(placed.device_LN, placed.modules)
    parts = dict.fromkeys(("attention", "predictor", "kv", "head"), 0.0)
    sizes = dict.fromkeys(parts, 0.0)
    for module in problem.modules:
        kind = KINDS.get(module.kind, "head")
        parts[kind] += cost.module_s(module, placed.modules[module.name])
        sizes[kind] += module.bytes * module.read_share
    hot_LN = placed.device_LN == 0
    for name, own_LN in (("hot", hot_LN), ("cold", ~hot_LN)):
        sizes[name] = float(cost.bytes_LN[own_LN].sum())
    together = sum if hardware.in_turn else max
    parts["ffn"] = sum(together((layer.hot_s, layer.cold_s)) for layer in token.layers)
    parts["exchange"] = sum(layer.exchange_s for layer in token.layers)
    parts["gaps"] = hardware.gap_s * graph_nodes(problem, placed) if hardware.has_gpu else 0.0
    first = problem.devices[0]
    return Roofline(
        parts,
        sum(layer.hot_s for layer in token.layers),
        sum(layer.cold_s for layer in token.layers),
        sizes,
        tuple(name for name, home in placed.modules.items() if home != first),
    )


def graph_nodes(problem: Problem, placed: Placement | Plan) -> int:
    """Kernels one after the other in the GPU's graph of a token."""
    hot_layers = int((placed.device_LN == 0).any(axis=1).sum())
    predictors = sum(module.kind == "predictor" for module in problem.modules)
    layers = problem.shape[0]
    return NODES_LAYER * layers + NODES_HOT * hot_layers + NODES_PREDICTOR * predictors + NODES_ONCE


def for_gpu(problem: Problem, vram_bytes: int | None, scratch_bytes: int) -> Problem:
    """The problem with the budget that a GPU leaves: less context and scratch; None: enough.

    Raises:
        ConfigError: context and scratch alone are more.
    """
    modules = sum(module.bytes for module in problem.modules)
    everything = modules + int(problem.neuron_bytes_L.sum()) * problem.shape[1]
    if vram_bytes is None:
        return replace(problem, budgets={**problem.budgets, problem.devices[0]: everything})
    reserve = problem.hardware.context_bytes + scratch_bytes
    if vram_bytes < reserve:
        raise ConfigError(
            f"--vram {vram_bytes} bytes is less than the {reserve} bytes that the CUDA context and "
            "a pass's scratch take; raise --vram"
        )
    return replace(problem, budgets={**problem.budgets, problem.devices[0]: vram_bytes - reserve})


def _check_same(problem: Problem, placed: Placement | Plan) -> None:
    """Raise unless a plan was made for these shapes and modules."""
    names = {module.name for module in problem.modules}
    if np.shape(placed.device_LN) != problem.shape or set(placed.modules) != names:
        missing = sorted(names ^ set(placed.modules))
        raise ConfigError(
            f"the plan is for {np.shape(placed.device_LN)} neurons"
            f"{f' and differs in {missing[0]}' if missing else ''}, the problem has "
            f"{problem.shape}; give the options the plan was solved with"
        )
