"""A sweep of placement policies over several actor groups that run side by side on one cluster.

Each setting gets a Ray task with its own engine in its own placement group, so Ray finds a node for
each and queues what has no room. Engines on one node compete for cores and memory bandwidth, so
compare the shares and whether the tokens agree, not the speeds; for speeds there is `hotcold
compare`.

Run: python examples/04_sweep.py [POLICY...]
On a cluster: hotcold submit --working-dir examples -- python 04_sweep.py
"""

import sys

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hotcold.actors import Engine

POLICIES = ("greedy", "latency")
BUDGETS = ("24MiB", "32MiB")
SIDE_BY_SIDE = 4
CPUS = 0.4  # of one group; small, so that several fit a laptop
PROMPT, TOKENS = "The sea was", 24


@ray.remote(num_cpus=0)
def run_one(policy: str, vram: str, group: PlacementGroup) -> tuple[float, float, list[int]]:
    """GPU neuron load, share of placed bytes there, and the tokens."""
    with Engine.launch(
        vram=vram, policy=policy, threads=1, predictor="exact", placement_group=group
    ) as engine:
        ids = [token.id for token in engine.generate(PROMPT, max_tokens=TOKENS)]
        stats = engine.stats()
    sizes = stats.bytes_by_device
    return stats.gpu_neuron_load, sizes["gpu0"] / sum(sizes.values()), ids


def main() -> None:
    ray.init(namespace="hotcold", log_to_driver=False, logging_level="ERROR")
    policies = sys.argv[1:] or POLICIES
    settings = [(policy, vram) for policy in policies for vram in BUDGETS]
    texts = []
    for at in range(0, len(settings), SIDE_BY_SIDE):
        wave = settings[at : at + SIDE_BY_SIDE]
        groups = [placement_group([{"CPU": CPUS}]) for _ in wave]
        try:
            refs = []
            for (policy, vram), group in zip(wave, groups, strict=True):
                where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
                task = run_one.options(scheduling_strategy=where)
                refs.append(task.remote(policy, vram, group))
            for (policy, vram), (load, held, ids) in zip(wave, ray.get(refs), strict=True):
                texts.append(ids)
                print(f"{policy:8} {vram:6} {held:4.0%} of bytes, {load:4.0%} of active neurons")
        finally:
            for group in groups:
                remove_placement_group(group)
    print("same tokens:", "yes" if all(ids == texts[0] for ids in texts) else "no")
    ray.shutdown()


if __name__ == "__main__":
    main()
