"""fetch: cold neurons that the GPU executor computes by reading them over the bus.

The paper's Figure 6 asks whether a neuron in host memory is better computed where it lies or loaded
and computed on the GPU. A schedule answers with a share for each layer. Which neurons are fetched
is decided here, from the plan alone: evenly spread over the cold ones by id, so that about the same
share of those that fire is fetched for every token. Their records stay in host memory (beside a GPU
in a pinned copy, which its kernels read directly), they count under no device budget, and each is
still computed whole by one executor.

Used where a plan becomes programs, and by the cost model. The share is chosen in
policies/schedule/fetch.py.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.plan.dag import node_id
from hotcold.runtime.plan.placement import first_mixed
from hotcold.runtime.plan.plan import Plan


def fetched(
    device_LN: NDArray[np.int8], share_L: Sequence[float], gpus: int = 1
) -> NDArray[np.bool_]:
    """Which of the host's neurons the first GPU executor computes, bool [L, N].

    share_L is by layer the share of its cold neurons to fetch, 0 to 1; empty: none. gpus: devices
    that are not the host's.
    """
    if not any(share_L):
        return np.zeros(device_LN.shape, np.bool_)
    share_L1 = np.asarray(share_L, np.float64)[:, None]
    on_host_LN = device_LN >= gpus
    rank_LN = np.cumsum(on_host_LN, axis=1)
    chosen_LN: NDArray[np.bool_] = np.floor(rank_LN * share_L1) > np.floor((rank_LN - 1) * share_L1)
    chosen_LN &= on_host_LN
    return chosen_LN


def computed_plan(plan: Plan, share_L: Sequence[float]) -> Plan:
    """The plan as the executors compute it: fetched neurons are the GPU executor's.

    Raises:
        ConfigError: they have another format than its own of that layer.
    """
    chosen_LN = fetched(plan.device_LN, share_L, plan.gpus)
    if not chosen_LN.any():
        return plan
    on_gpu_LN = chosen_LN | (plan.device_LN == 0)
    if plan.dtype_LN is not None and (at := first_mixed(on_gpu_LN, plan.dtype_LN)) is not None:
        whose = [0, *range(plan.gpus, len(plan.devices))]
        words = [f"{plan.format(at, d) or plan.dtype} on {plan.devices[d]}" for d in whose]
        raise ConfigError(
            f"neurons of layer {at} are {' and '.join(words)}, which the GPU executor cannot fetch "
            "as well; choose a schedule that fetches none and --bus-share 0, or a placement with "
            "one format in a layer"
        )
    return replace(plan, device_LN=np.where(chosen_LN, 0, plan.device_LN).astype(np.int8))


def idle_nodes(plan: Plan, share_L: Sequence[float]) -> frozenset[str]:
    """Nodes of the plan's graph with nothing to compute: no neuron fetched, or none left cold."""
    chosen_LN = fetched(plan.device_LN, share_L, plan.gpus)
    idle = {f"fetch.{layer}" for layer in np.flatnonzero(~chosen_LN.any(axis=1))}
    for device in range(plan.gpus, len(plan.devices)):
        left_L = ((plan.device_LN == device) & ~chosen_LN).any(axis=1)
        idle |= {node_id("cold", int(layer), plan, device) for layer in np.flatnonzero(~left_L)}
    return frozenset(idle)
