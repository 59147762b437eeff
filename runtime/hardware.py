"""HardwareProfile: what a machine can do, as the numbers policies and the cost model need.

Placement policies get it in their Problem, schedule policies as an argument. Pure data: nothing is
measured here. The reference machines of machines/ are read by name.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hotcold.runtime.errors import CheckpointError, ConfigError

_MACHINES = Path(__file__).parent / "machines"
_FILE_LIMIT = 2**20


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

    def __post_init__(self) -> None:
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (math.isfinite(value) and value > 0):
                raise CheckpointError(
                    f"hardware profile {self.name!r}: {field.name} is {value!r}; "
                    "it must be a finite number above 0"
                )

    @classmethod
    def unmeasured(cls) -> "HardwareProfile":
        """This machine, not measured: round figures of a laptop whose GPU executor runs on its CPU.

        Both executors read the same host memory, so both get the same rates. Good enough to tell a
        cheap layer from a dear one; never to be reported as this machine's speed.
        """
        return cls(
            name="not measured",
            measured=False,
            host_gb_per_s=20.0,
            gpu_gb_per_s=20.0,
            pcie_gb_per_s=20.0,
            host_gflops=100.0,
            gpu_gflops=100.0,
            sync_s=5e-6,
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
        names = {field.name for field in fields(cls)}
        if not isinstance(data, dict) or set(data) != names:
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise CheckpointError(
                f"a hardware profile needs the keys {', '.join(sorted(names))}; found {found}"
            )
        if not isinstance(data["name"], str) or not isinstance(data["measured"], bool):
            raise CheckpointError("a hardware profile's name is text and measured is true or false")
        return cls(**data)


def reference_machines() -> list[str]:
    """Names of the machines that come with hotcold; machines/__init__.py says what they are."""
    return sorted(path.stem for path in _MACHINES.glob("*.json"))


def load_hardware(name: str) -> HardwareProfile:
    """A profile by the name of a reference machine, or by the path of a JSON file.

    Raises:
        ConfigError: neither of the two.
        CheckpointError: a file that does not hold a profile.
    """
    path = _MACHINES / f"{name}.json" if name in reference_machines() else Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"no hardware profile {name!r}: it is neither a file nor one of "
            f"{', '.join(reference_machines())}"
        )
    try:
        if path.stat().st_size > _FILE_LIMIT:
            raise ValueError(f"it is larger than {_FILE_LIMIT} bytes")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"hardware profile {path} cannot be read: {error}") from error
    return HardwareProfile.from_json(data)
