"""Moving neurons while tokens run: from one table of owners to another, a version at a time.

A transaction changes the owners of any number of neurons and is cut into versions. Of each, first
every device that keeps records of its own takes the neurons that come, into free slots; then the
table is written and the version wanted; once all loops follow it (native/loop/moves.c), slots of
neurons that went are freed. What fails before a version is wanted leaves it undone, and the
versions before it are undone in turn: then all is as it was. Only a poisoned exchange ends it half
way; the next epoch begins with the table there is.

Versions keep a byte rate, of the records as their new devices store them; what is over waits.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import Op
from hotcold.native.errors import BudgetError, ConfigError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.exchange.segment import Segment
from hotcold.runtime.plan.plan import Plan

Owners = NDArray[np.int8]  # [L, N], index into the plan's devices
Places = NDArray[np.int32]  # [M, 2]: layer, neuron
RATE = 256 << 20  # bytes a second
BURST_S = 0.02  # of the rate may go out at once
LOOK_S = 0.0005  # between two looks at the loops
# What of a deployment is the same in two that differ in owners alone.
_OWN = ("plan", "programs", "profile", "config", "predictor_note", "version", "moved")


class Taker(Protocol):
    """A device that keeps records of its own, in the process of its executor."""

    def take(self, places: Places) -> int:
        """Make records of neurons that come; as many of the first as there is room for.

        Returns how many; an error leaves nothing behind.
        """

    def drop(self, places: Places) -> None:
        """Free records of neurons that have gone, or have not come after all."""


@dataclass(frozen=True)
class Moved:
    """What a transaction came to.

    Args:
        neurons: that changed their owner.
        versions: of the table of owners.
        bytes: of their records, as their new devices store them.
        seconds: from the first to the last version.
    """

    neurons: int = 0
    versions: int = 0
    bytes: int = 0
    seconds: float = 0.0


def cannot_move(now: Deployment, to: Deployment) -> str | None:
    """Why one deployment cannot become the other by moves alone; None: it can."""
    return next(_hindrances(now, to), None)


def _hindrances(now: Deployment, to: Deployment) -> Iterator[str]:
    if not now.shares_memory:
        yield "over the ray transport executors share no table of owners"
    if now.gpu is not None or to.gpu is not None:
        yield "a CUDA executor cannot move neurons yet: its graph has a fixed table of them"
    if any(now.fetch_L) or any(to.fetch_L):
        yield "the schedule fetches neurons, chosen from a plan as a whole"
    for field in fields(Deployment):
        if field.name not in _OWN and not _same(getattr(now, field.name), getattr(to, field.name)):
            yield f"{field.name} differs"
    actors = now.topology.actors
    if any(now.programs[actor].tobytes() != to.programs[actor].tobytes() for actor in actors):
        yield "programs differ: a layer has come to a device, or has left it"
    for device, (name, executor) in enumerate(
        zip(now.plan.devices, now.topology.executors, strict=True)
    ):
        steps = now.programs[executor.actor]
        served = set(steps["layer"][np.isin(steps["op"], (Op.HOT, Op.COLD))].tolist())
        owning = set(np.flatnonzero((to.plan.device_LN == device).any(axis=1)).tolist())
        if owning - served:
            yield f"layer {min(owning - served)} has no step on {name}"
    for name in (now.plan.devices[device] for device in own_memory(now)):
        if now.plan.budgets[name] != to.plan.budgets[name]:
            yield f"the budget of {name} differs, for which it has its slots"
    if _formats(now.plan) != _formats(to.plan):
        yield "formats of neurons differ"


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same, or two copies of one: a predictor may be any object."""
    try:
        alike = one is other or bool(one == other)
        return alike or (type(one) is type(other) and bool(vars(one) == vars(other)))
    except Exception:  # noqa: BLE001 - of a user's class; a new epoch takes what cannot be compared
        return False


def _formats(plan: Plan) -> list[str | None]:
    layers, devices = range(plan.shape[0]), range(len(plan.devices))
    return [plan.format(layer, device) for layer in layers for device in devices]


def own_memory(deployment: Deployment) -> list[int]:
    """Devices that keep records of their own, in another format or in private memory."""
    plan = deployment.plan
    devices, layers = range(len(plan.devices)), range(plan.shape[0])
    return [
        device
        for device in devices
        if any(plan.format(layer, device) for layer in layers)
        or (deployment.store == "private" and device > 0)
    ]


class Table:
    """The table of owners in a segment, as one who may write it sees it."""

    def __init__(self, segment: Segment, deployment: Deployment) -> None:
        self._segment, self._deployment = segment, deployment

    @property
    def version(self) -> int:
        """Of the table; 0 before the first change of this epoch."""
        return int(self._segment.native.owners.wanted)

    @property
    def moved(self) -> int:
        """Neurons that have changed their owner in this epoch."""
        return int(self._segment.native.owners.moved)

    def _view(self, version: int) -> Owners:
        shape, layout = self._deployment.plan.shape, self._deployment.layout
        view = self._segment.view(layout.owner_table(version & 1), shape[0] * shape[1])
        owners: Owners = view.view(np.int8).reshape(shape)
        return owners

    def read(self) -> Owners:
        """A copy of the table as it is."""
        while version := self.version:
            found: Owners = np.array(self._view(version))
            if version == self.version:  # else it may have been written over meanwhile
                return found
        return self._deployment.plan.device_LN

    def write(self, device_LN: Owners, moved: int) -> int:
        """Write the next version, which is returned; all loops must follow the one before."""
        version = self.version
        if not version:
            self._view(0)[...] = self._deployment.plan.device_LN
        self._view(version + 1)[...] = device_LN
        self._segment.native.owners.moved += moved
        return version + 1

    def followed_by_all(self, version: int) -> bool:
        """Whether every loop that has steps computes with a version."""
        followed = self._segment.native.owners.followed
        programs, actors = self._deployment.programs, self._deployment.topology.actors
        return all(
            followed[index] == version for index, actor in enumerate(actors) if len(programs[actor])
        )


class Mover:
    """Runs transactions, one at a time.

    Args:
        deployment: that the epoch of the segment began with.
        own: asks the loops for a version (NativeExecutor.own).
        takers: by index, the devices of own_memory().
        clock, sleep: seconds; replaced by tests.
    """

    def __init__(
        self,
        deployment: Deployment,
        segment: Segment,
        own: Callable[[int], None],
        takers: Mapping[int, Taker],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.table = Table(segment, deployment)
        self._deployment, self._segment = deployment, segment
        self._own, self._takers, self._clock, self._sleep = own, takers, clock, sleep
        plan = deployment.plan
        devices, layers = range(len(plan.devices)), range(plan.shape[0])
        sizes = [[_bytes(plan, layer, device) for layer in layers] for device in devices]
        self._bytes_DL = np.array(sizes, np.int64)

    def run(self, to_LN: Owners, rate: int = RATE) -> Moved:
        """Make the table this one.

        Raises:
            BudgetError: a device has no free slot; all is as it was.
            ConfigError: no rate; a weight that a device's format cannot hold; all is as it was.
            ActorLostError, PlanReplaced, KernelError: the exchange was poisoned meanwhile.
        """
        if rate < 1:
            raise ConfigError(f"rate {rate}: 1 byte a second is the least; leave it out for {RATE}")
        begin_LN, begin, done, versions = self.table.read(), self._clock(), 0, 0
        pending = self._pending(begin_LN, to_LN)
        total = sum(len(rows) for rows in pending.values())
        try:
            while any(len(rows) for rows in pending.values()):
                elapsed = self._clock() - begin
                due = done / rate - elapsed
                if due > 0:
                    self._sleep(min(due, BURST_S))
                    self._segment.raise_if_poisoned()
                    continue
                allowed = max(rate * elapsed - done, 0) + rate * BURST_S
                done += self._version(pending, allowed)
                versions += 1
        except BaseException:
            if versions and self._segment.poisoned is None:
                back = self._pending(self.table.read(), begin_LN)
                while any(len(rows) for rows in back.values()):
                    self._version(back, float("inf"))
            raise
        return Moved(total, versions, done, self._clock() - begin)

    def _pending(self, now_LN: Owners, to_LN: Owners) -> dict[int, Places]:
        """What has to come to each device."""
        return {
            device: np.argwhere((now_LN != to_LN) & (to_LN == device)).astype(np.int32)
            for device in range(len(self._deployment.plan.devices))
        }

    def _version(self, pending: dict[int, Places], allowed: float) -> int:
        """Let some neurons come to each device, and take them from `pending`; their bytes."""
        now_LN = self.table.read()
        next_LN, size = now_LN.copy(), 0
        coming: dict[int, Places] = {}
        waiting = [device for device, rows in pending.items() if len(rows)]
        try:
            for device in waiting:
                rows = self._first(device, pending[device], allowed / len(waiting))
                taker = self._takers.get(device)
                if taker is not None:
                    rows = rows[: taker.take(rows)]
                coming[device] = rows
                next_LN[rows[:, 0], rows[:, 1]] = device
                size += int(self._bytes_DL[device, rows[:, 0]].sum())
            if not any(len(rows) for rows in coming.values()):
                names = " and ".join(self._deployment.plan.devices[device] for device in waiting)
                raise BudgetError(
                    f"no free slot on {names} for neurons that are to come; move others away "
                    "first, or raise the budget"
                )
        except BaseException:
            self._drop(coming)
            raise
        count = sum(len(rows) for rows in coming.values())
        self._follow(self.table.write(next_LN, count))
        for device, rows in coming.items():
            pending[device] = pending[device][len(rows) :]
        gone = {
            device: np.concatenate(
                [rows[now_LN[rows[:, 0], rows[:, 1]] == device] for rows in coming.values()]
            )
            for device in self._takers
        }
        self._drop(gone)
        return size

    def _first(self, device: int, rows: Places, allowed: float) -> Places:
        """As many of the first as a number of bytes allows, one at least."""
        ends = np.cumsum(self._bytes_DL[device, rows[:, 0]])
        return rows[: max(1, int(np.searchsorted(ends, allowed, side="right")))]

    def _follow(self, version: int) -> None:
        self._own(version)
        while not self.table.followed_by_all(version):
            self._segment.raise_if_poisoned()
            time.sleep(LOOK_S)

    def _drop(self, places: Mapping[int, Places]) -> None:
        for device, rows in places.items():
            if device in self._takers and len(rows):
                self._takers[device].drop(rows)


def _bytes(plan: Plan, layer: int, device: int) -> int:
    kind = plan.format(layer, device)
    return plan.format_bytes[kind] if kind else int(plan.neuron_bytes_L[layer])


def by_layer(places: Places) -> dict[int, NDArray[np.int32]]:
    """Neurons by layer, in the order in which the layers come."""
    layers = dict.fromkeys(places[:, 0].tolist())
    return {layer: places[places[:, 0] == layer][:, 1] for layer in layers}
