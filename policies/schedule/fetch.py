"""fetch: the GPU reads a share of the cold neurons over the bus, the CPU computes the rest.

The paper's Figure 6 compares computing a neuron on the CPU with loading it over PCIe and computing
it on the GPU, and finds the CPU faster for small batches. This schedule does both at once: the bus
and the CPU each take a share, so that neither waits for the other. share 1 is load-then-execute,
share 0 is `selective`.

By default the share is Bp / (Bp + Bc), from the machine's rates of the bus and of the CPU executor,
so that both take equally long. It ignores that the bus reads the same host memory that the CPU does
(where that memory is the bound, fetching gains nothing), the GPU's own hot neurons, and that some
neurons are cheaper to fetch than others: the fetched ones are spread evenly over the cold ones.
"""

from dataclasses import dataclass

from hotcold.native.errors import ConfigError
from hotcold.runtime.hardware.profile import HardwareProfile
from hotcold.runtime.plan.dag import Dag
from hotcold.runtime.plan.plan import Plan
from hotcold.runtime.plan.schedule import Schedule, fetching, in_order


@dataclass(frozen=True)
class Fetch:
    """Selective synchronisation, and a share of the cold neurons fetched.

    Args:
        share: of the cold neurons of every layer, 0 to 1; None: by the machine's rates.

    Raises:
        ConfigError: a share out of range.
    """

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None and not 0 <= self.share <= 1:
            raise ConfigError(f"schedule 'fetch': share is {self.share}; it must be from 0 to 1")

    def schedule(self, dag: Dag, plan: Plan, hardware: HardwareProfile) -> Schedule:
        """Layer after layer, the same share in each that has cold neurons."""
        share = self.share
        if share is None:
            share = hardware.pcie_gb_per_s / (hardware.pcie_gb_per_s + hardware.host_gb_per_s)
        return fetching(dag, in_order(dag, sync="selective"), (share,) * dag.n_layers)
