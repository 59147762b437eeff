"""A schedule policy: in which order, where, and with which waits a token is computed.

Try it:

    hotcold generate "Once upon a time" --vram 28MiB --schedule mine.py:Mine
"""

from dataclasses import dataclass, replace

from hotcold.policies import Dag, HardwareProfile, Plan, Schedule, in_order


@dataclass(frozen=True)
class Mine:
    """Skip the exchange where no cold neuron fired, but not in the first layers.

    Args:
        always: how many layers, from the first, wait in any case; --set schedule.always=2.
    """

    always: int = 1

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Decide; an order that cannot run is refused with the edge that offends.

        dag.nodes  id, kind (attention predict hot cold fetch merge), layer, device_choices
        dag.edges  (a, b): b reads what a wrote
        Schedule   lane and order of the nodes, sync and lookahead by layer, after: further order;
                   read_ahead: read early lists' records while attention runs
        """
        plain = in_order(dag, sync="selective")
        sync = tuple(
            "always" if layer < self.always else usual for layer, usual in enumerate(plain.sync)
        )
        return replace(plain, sync=sync)
