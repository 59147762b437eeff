"""Topology: the actors that share an exchange, the role of each, and the device it owns.

The one table of them. Executors come first, those on GPUs before those on the CPU, and each owns a
device; the first leads. The predictor comes last and owns none. Labels are for people, files and
Ray: code asks for roles, and for places in this table.
"""

from dataclasses import dataclass
from functools import cached_property

from hotcold.native.abi.generated import MAX_DEVICES, Role
from hotcold.native.errors import ConfigError

PREDICTOR = "predictor"


@dataclass(frozen=True)
class Member:
    """One actor.

    Args:
        actor: its label, such as "gpu" or "cpu1".
        role: what its native loop does.
        device: the label of what it owns, such as "gpu0"; "predictor" owns none and is its own.
        index: of that device among the devices; -1: none.
        on_gpu: whether it is a GPU executor, be it on its CPU device.
    """

    actor: str
    role: Role
    device: str
    index: int = -1
    on_gpu: bool = False


@dataclass(frozen=True)
class Topology:
    """So many GPU executors and CPU executors, and a predictor.

    Raises:
        ConfigError: none of a kind, or more than an exchange has room for.
    """

    gpus: int = 1
    cpus: int = 1

    def __post_init__(self) -> None:
        if self.gpus < 1 or self.cpus < 1 or self.gpus + self.cpus > MAX_DEVICES:
            raise ConfigError(
                f"{self.gpus} GPU executors and {self.cpus} CPU executors; there must be one of "
                f"each kind, and at most {MAX_DEVICES} of both"
            )

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """All actors, in the order of their places in a segment."""
        executors = [("gpu", at) for at in range(self.gpus)]
        executors += [("cpu", at) for at in range(self.cpus)]
        made = [
            Member(
                actor=f"{kind}{at or ''}",
                role=Role.WORKER if index else Role.LEADER,
                device=f"{kind}{at}",
                index=index,
                on_gpu=index < self.gpus,
            )
            for index, (kind, at) in enumerate(executors)
        ]
        return (*made, Member(PREDICTOR, Role.PREDICTOR, PREDICTOR))

    @cached_property
    def actors(self) -> tuple[str, ...]:
        """Their labels, in that order."""
        return tuple(member.actor for member in self.members)

    @cached_property
    def executors(self) -> tuple[Member, ...]:
        """Those that own a device, in the order of the devices."""
        return self.members[:-1]

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Labels of the devices: the leader's first, the host's last."""
        return tuple(member.device for member in self.executors)

    @property
    def leader(self) -> Member:
        """The first GPU executor."""
        return self.members[0]

    @property
    def predictor(self) -> Member:
        """The one that owns no device."""
        return self.members[-1]

    def member(self, actor: str) -> Member:
        """The one of a label."""
        return self.members[self.actors.index(actor)]

    def owner(self, device: str) -> Member:
        """Who computes what a device, or the predictor's lane, has."""
        return next(member for member in self.members if member.device == device)


CLASSIC = Topology()  # the paper's: a GPU executor, a CPU executor and a predictor
