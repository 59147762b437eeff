"""HardwareProfile: what a machine can do, as the numbers policies and the cost model need.

Placement policies get it in their Problem, schedule policies as an argument. Pure data: nothing is
measured here. machine_file.py reads the files that say where each figure comes from,
this_machine.py finds this machine's, and the reference machines in machines/ are read by name.
"""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from hotcold.native.errors import CheckpointError

MAY_BE_ZERO = ("gap_s", "context_bytes")


def check_number(what: str, value: object, zero: bool) -> None:
    """Raise CheckpointError unless a value is finite and above 0, or 0 where that is allowed."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (0 <= value < 1e300 and (value > 0 or zero)):  # type: ignore[operator]
        least = "0 or more" if zero else "above 0"
        raise CheckpointError(f"{what} is {value!r:.60}; it must be a finite number, {least}")


@dataclass(frozen=True)
class HardwareProfile:
    """Rates of one machine; GB are 10**9 bytes, rates are what a kernel reaches, not the label's.

    Args:
        name: of the machine, for tables.
        measured: whether the rates were measured on it; if not, they only order alternatives.
        host_gb_per_s: the CPU executor reading host memory, all its threads.
        gpu_gb_per_s: the GPU executor reading its own memory (its CPU device: host memory).
        pcie_gb_per_s: host memory to GPU memory.
        host_gflops: the CPU executor's multiply-adds, counted as two, in 10**9 a second.
        gpu_gflops: the same of the GPU executor.
        sync_s: one exchange between executors, there and back, with nothing to compute.
        has_gpu: False where the GPU executor computes on its CPU device: then both executors read
            one memory with the same cores.
        at_once: without a GPU, whether each executor has cores of its own and reads at these rates
            while the other does; if not, one waits while the other reads.
        gap_s: time that a node of a captured graph takes if it does nothing; 0: none.
        context_bytes: GPU memory that a CUDA context takes of every budget; 0: not known.

    Raises:
        CheckpointError: a rate that is not a finite number above 0.
    """

    name: str
    measured: bool
    host_gb_per_s: float
    gpu_gb_per_s: float
    pcie_gb_per_s: float
    host_gflops: float
    gpu_gflops: float
    sync_s: float
    has_gpu: bool = True
    gap_s: float = 0.0
    context_bytes: int = 0
    at_once: bool = False

    def __post_init__(self) -> None:
        for name, value in self.to_json().items():
            if name in ("name", "measured", "has_gpu", "at_once"):
                continue
            check_number(f"hardware profile {self.name!r}: {name}", value, name in MAY_BE_ZERO)

    @property
    def in_turn(self) -> bool:
        """Whether one executor waits while the other reads."""
        return not (self.has_gpu or self.at_once)

    @classmethod
    def unmeasured(cls) -> "HardwareProfile":
        """This machine, not measured: round figures of a laptop whose GPU executor runs on its CPU.

        Both executors read the same host memory, so both get the same rates. Good enough to tell a
        cheap layer from an expensive one; never to be reported as this machine's speed.
        """
        return cls(
            name="this machine",
            measured=False,
            host_gb_per_s=20.0,
            gpu_gb_per_s=20.0,
            pcie_gb_per_s=20.0,
            host_gflops=100.0,
            gpu_gflops=100.0,
            sync_s=5e-6,
            has_gpu=False,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> "HardwareProfile":
        """Inverse of to_json.

        Raises:
            CheckpointError: a key is missing or unknown, or a rate is out of range.
        """
        every = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(data, dict) or not needed <= set(data) <= every:
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise CheckpointError(
                f"a hardware profile needs the keys {', '.join(sorted(needed))}; found {found}"
            )
        if not isinstance(data["name"], str) or not isinstance(data["measured"], bool):
            raise CheckpointError("a hardware profile's name is text and measured is true or false")
        for name in ("has_gpu", "at_once"):
            if not isinstance(data.get(name, True), bool):
                raise CheckpointError(f"a hardware profile's {name} is true or false")
        return cls(**data)
