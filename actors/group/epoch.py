"""One epoch of an actor group: what its executors share while a deployment runs.

Looked at by the driver that owns it: whether it is poisoned, how far a pass has come, who holds it
up. A new deployment, or new actors, mean a new epoch on a new segment.
"""

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import ray

from hotcold.native.errors import KernelError
from hotcold.runtime.engine.deployment import Deployment
from hotcold.runtime.engine.executors.factory import executor_classes
from hotcold.runtime.engine.moving import Table
from hotcold.runtime.exchange.segment import Poison, PoisonCode, Segment, SegmentHandle
from hotcold.runtime.plan.moved import with_owners
from hotcold.runtime.topology import CLASSIC


class Epoch:
    """One in which nothing is shared: over the Ray transport, and between two others."""

    handle: SegmentHandle | None = None

    def __init__(self, is_healthy: bool) -> None:
        self._is_healthy = is_healthy

    @property
    def is_healthy(self) -> bool:
        """Whether nothing has poisoned it."""
        return self._is_healthy

    @property
    def poison(self) -> Poison | None:
        """Why it was ended; None: it was not."""
        return None

    def poison_within(self, timeout_s: float) -> Poison | None:
        """The same, waited for at most so long."""
        time.sleep(timeout_s)
        return None

    def pass_age_s(self) -> float:
        """Seconds since the running pass began; 0 between passes."""
        return 0.0

    def progress(self) -> int | None:
        """Steps all actors have done, while a pass runs; None between passes."""
        return None

    def holding_up(self) -> str:
        """The actor whose next step has all it waits for, and yet does not go on."""
        return CLASSIC.leader.actor

    def current(self, deployment: Deployment) -> Deployment:
        """The deployment with its neurons where they have been moved to."""
        return deployment

    def ownership(self) -> tuple[int, int]:
        """Version of the table of owners, and neurons moved, in this epoch."""
        return 0, 0

    def end(self, code: PoisonCode, actor: str) -> None:
        """Poison it, with the actor at fault."""

    def run(self, actors: Mapping[str, Any]) -> None:
        """Begin the resident loops."""

    def running(self, actors: Collection[str], timeout_s: float) -> set[str]:
        """Those of some actors whose loops have not returned in time."""
        return set()

    def close(self) -> None:
        """Give up what was shared; `end` it first."""


class SharedEpoch(Epoch):
    """One on a segment, in which every actor runs its resident loop."""

    def __init__(self, deployment: Deployment, number: int, pids: Mapping[int, str]) -> None:
        self._deployment = deployment
        self._segment = Segment.create(deployment.layout, number, deployment.spins)
        self._watcher = self._segment.watch(pids)
        self._loops: dict[str, Any] = {}
        self.handle = self._segment.handle

    @property
    def is_healthy(self) -> bool:
        """Whether nothing has poisoned it."""
        try:
            return self._segment.poisoned is None
        except KernelError:  # closed just now: another epoch begins
            return False

    @property
    def poison(self) -> Poison | None:
        """Why it was ended; None: it was not."""
        return self._segment.poisoned

    def poison_within(self, timeout_s: float) -> Poison | None:
        """The same, waited for at most so long."""
        segment, never = self._segment, self._deployment.layout.spare_flag(0)
        try:
            segment.native.wait(never, 1, segment.epoch, int(timeout_s * 1e9))
            return segment.poisoned
        except KernelError:  # closed meanwhile, by a new plan
            return None

    def pass_age_s(self) -> float:
        """Seconds since the running pass began; 0 between passes."""
        try:
            if self.progress() is None:
                return 0.0
            began_ns: int = self._segment.native.pass_begin_ns
            return max(0.0, (time.monotonic_ns() - began_ns) / 1e9)
        except KernelError:
            return 0.0

    def progress(self) -> int | None:
        """Steps all actors have done, while a pass runs; None between passes."""
        segment = self._segment
        try:
            states = {actor: segment.actor_state(actor) for actor in segment.actors}
            led = states[segment.actors[0]].passes
            runs = segment.native.pass_seq > led or segment.native.pass_prompt
            return sum(state.progress for state in states.values()) if runs else None
        except KernelError:
            return None

    def holding_up(self) -> str:
        """The actor whose next step has all it waits for; else the one that leads."""
        segment, layout = self._segment, self._deployment.layout
        seq = segment.native.pass_seq
        flags = segment.flags(layout.flags_offset, layout.n_flags)
        for actor, executor in executor_classes(self._deployment).items():
            steps = self._deployment.programs[actor]
            if segment.native.pass_prompt or not executor.walks_steps or not len(steps):
                continue
            waits = steps[segment.actor_state(actor).progress % len(steps)]["wait"]
            if all(flag < 0 or flags[flag] == seq for flag in waits):
                return actor
        return self._deployment.topology.leader.actor

    def current(self, deployment: Deployment) -> Deployment:
        """The deployment with its neurons where they have been moved to."""
        try:
            table = Table(self._segment, self._deployment)
            plan = with_owners(deployment.plan, table.read()) if table.version else deployment.plan
        except KernelError:  # closed meanwhile, by a new plan
            return deployment
        return deployment if plan is deployment.plan else replace(deployment, plan=plan)

    def ownership(self) -> tuple[int, int]:
        """Version of the table of owners, and neurons moved, in this epoch."""
        table = Table(self._segment, self._deployment)
        return table.version, table.moved

    def end(self, code: PoisonCode, actor: str) -> None:
        """Poison it, with the actor at fault."""
        self._segment.poison(code, actor)

    def run(self, actors: Mapping[str, Any]) -> None:
        """Begin the resident loops."""
        self._loops = {actor: actors[actor].loop.remote() for actor in self._segment.actors}

    def running(self, actors: Collection[str], timeout_s: float) -> set[str]:
        """Those of some actors whose loops have not returned in time."""
        loops = {actor: ref for actor, ref in self._loops.items() if actor in actors}
        if not loops:
            return set()
        _, late = ray.wait(list(loops.values()), num_returns=len(loops), timeout=timeout_s)
        return {actor for actor, ref in loops.items() if ref in late}

    def close(self) -> None:
        """Give up the segment; `end` it first."""
        self._watcher.close()
        self._segment.close()
