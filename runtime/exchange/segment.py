"""The exchange segment: what the actors share during a pass, and how it is made and attached.

The driver creates one segment for one epoch of one engine; the actors attach to it through the
driver's /proc entry. Flags and waits are C (`native/exchange/exchange.c`); here are the layout of
the bytes and the life of the mapping. A memfd has no name, so nothing can be left behind: it goes
with the last process that maps it. A new epoch is a new segment; poison is never cleared.
"""

import mmap
import os
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import ABI_VERSION, DRIVER, FLAG, SEGMENT, PoisonCode, Status
from hotcold.native.bindings.segment import NativeSegment, Watcher, copied
from hotcold.native.errors import (
    ActorLostError,
    ConfigError,
    KernelError,
    LaunchError,
    PlanReplaced,
)
from hotcold.runtime.exchange.layout import SegmentLayout
from hotcold.runtime.topology import CLASSIC
from hotcold.runtime.weights.memfd import check_sealed, create_sealed, open_sealed

__all__ = ["PoisonCode", "Segment", "SegmentHandle", "SegmentLayout"]

WAIT_SLICE_NS = 200_000_000  # Python looks at signals (Ctrl-C) in between
_ENDS = {PoisonCode.DIED: "died", PoisonCode.FAILED: "failed", PoisonCode.STUCK: "made no progress"}


class Poison(NamedTuple):
    """Why a segment was poisoned, and by whom or because of whom ("driver" for no actor)."""

    code: PoisonCode
    actor: str

    @property
    def replaces_plan(self) -> bool:
        """Orderly ended in the name of an actor: another plan follows."""
        return self.code is PoisonCode.CLOSED and self.actor != "driver"


@dataclass(frozen=True)
class ActorState:
    """An actor's counters since the segment was made; times in nanoseconds.

    clock_error_ns: by how much times of a GPU's spans may be off, at most; 0 without a GPU.
    asks, asked_ns: where the predictor has a process of its own on the GPU, questions to it, and
    the GPU executor's time from each to its answer.
    prompt_tokens, reused_tokens: of the GPU executor's requests; of those, not computed again.
    ahead_bytes: weights asked for before the layer's input was there (native/ops/ahead.c).
    """

    progress: int
    gate_rows: int
    up_down_rows: int
    bytes: int
    busy_ns: int
    wait_ns: int
    passes: int
    skipped_exchanges: int
    span_count: int
    pid: int
    audit_rows: int = 0
    audit_missed: int = 0
    clock_error_ns: int = 0
    asks: int = 0
    asked_ns: int = 0
    ahead_bytes: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0

    def since(self, before: "ActorState") -> "ActorState":
        """What was counted after an earlier state."""
        names = {x.name for x in fields(self)} - {"pid", "progress", "span_count", "clock_error_ns"}
        return replace(self, **{x: getattr(self, x) - getattr(before, x) for x in names})


@dataclass(frozen=True)
class SegmentHandle:
    """What another process of this machine needs to attach; plain data."""

    pid: int
    fd: int
    epoch: int
    bytes: int
    actors: tuple[str, ...] = CLASSIC.actors


class Segment:
    """One mapped segment: flags, poison, counters, payload views.

    Made by `create`, `private` or `attach`, never directly. Thread-safe where the C side is: every
    flag and counter has one writer. Views and native users keep the mapping alive after `close`.
    """

    def __init__(self, memory: mmap.mmap, epoch: int, fd: int = -1) -> None:
        self.epoch, self.actors = epoch, CLASSIC.actors
        self._memory: mmap.mmap | None = memory
        self._native: NativeSegment | None = NativeSegment(memory)
        self._fd = fd
        self._close_fd = weakref.finalize(self, os.close, fd) if fd >= 0 else None

    @classmethod
    def create(cls, layout: SegmentLayout, epoch: int, spins: bool = True) -> "Segment":
        """Make a segment on a sealed memfd that other processes can attach to.

        epoch: number of this incarnation of the engine's actors. spins: whether waiters, and the
        threads of the executors' pools, spin before they sleep in the kernel. LaunchError: the
        system refuses the memory.
        """
        fd = create_sealed("hotcold-exchange", layout.bytes)
        try:
            segment = cls(mmap.mmap(fd, layout.bytes), epoch, fd)
        except BaseException:
            os.close(fd)
            raise
        segment._init(layout, spins)
        return segment

    @classmethod
    def private(cls, layout: SegmentLayout, epoch: int, spins: bool = True) -> "Segment":
        """Make a segment in this process's own memory, for transports that copy payloads."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        segment = cls(mmap.mmap(-1, layout.bytes, flags=flags), epoch)
        segment._init(layout, spins)
        return segment

    @classmethod
    def attach(cls, handle: SegmentHandle) -> "Segment":
        """Map another process's segment (or this process's own once more).

        Raises:
            LaunchError: it is gone, not a segment, of another size, ABI or epoch.
        """
        fd = open_sealed(handle.pid, handle.fd, "exchange segment")
        try:
            segment = cls.attach_fd(fd, handle.epoch, handle.bytes)
            segment.actors = tuple(handle.actors)
            return segment
        finally:
            os.close(fd)

    @classmethod
    def attach_fd(cls, fd: int, epoch: int, n_bytes: int | None = None) -> "Segment":
        """Map a segment by a descriptor, which stays the caller's. Raises as attach does."""
        check_sealed(fd, "exchange segment")
        size = os.fstat(fd).st_size
        if size < SEGMENT.itemsize or (n_bytes is not None and size != n_bytes):
            raise LaunchError(
                f"exchange segment has {size} bytes, expected "
                f"{n_bytes or f'at least {SEGMENT.itemsize}'}; start the engine again"
            )
        segment = cls(mmap.mmap(fd, size), epoch)
        try:
            segment.native.check(epoch)
        except (ConfigError, KernelError) as error:
            found = f"ABI {segment.native.abi}, epoch {segment.native.epoch}"
            wanted = f"ABI {ABI_VERSION}, epoch {epoch}"
            segment.close()
            raise LaunchError(
                f"exchange segment refused ({error}): it has {found}, expected {wanted}; "
                "start the engine again"
            ) from error
        return segment

    def _init(self, layout: SegmentLayout, spins: bool) -> None:
        self.actors = layout.topology.actors
        self.native.init(
            *(self.epoch, layout.n_flags, layout.flags_offset),
            *(layout.span_offsets, layout.span_capacity),
        )
        self.native.init_owners(layout.owners_offset, [layout.owner_table(i) for i in (0, 1)])
        if not spins:
            self.native.pointer.spin_ns = 0

    @property
    def native(self) -> NativeSegment:
        """The C view; hold it for as long as native code uses its pointer."""
        if self._native is None:
            raise KernelError("the exchange segment is closed; start the engine again")
        return self._native

    @property
    def handle(self) -> SegmentHandle:
        """How other processes attach, for as long as this one keeps the segment open."""
        if self._fd < 0:
            raise KernelError("only the segment's creator hands it out, and not after close")
        return SegmentHandle(os.getpid(), self._fd, self.epoch, self.native.bytes, self.actors)

    def signal(self, flag: int, seq: int) -> None:
        """Set a flag to the number of the pass and wake who waits for it."""
        self.native.signal(flag, seq)

    def wait(self, flag: int, seq: int, timeout_s: float | None = None) -> bool:
        """Wait until a flag equals seq; False when timeout_s passed first.

        Raises:
            ActorLostError: poisoned because an actor died, failed or got stuck.
            KernelError: closed, or of another epoch.
        """
        deadline = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)
        while True:
            left = WAIT_SLICE_NS if deadline is None else deadline - time.monotonic_ns()
            part = max(0, min(left, WAIT_SLICE_NS))
            status, _ = self.native.wait(flag, seq, self.epoch, part)
            if status is Status.OK:
                return True
            self.raise_if_poisoned()
            if status is not Status.ERR_TIMEOUT:
                raise KernelError(
                    f"exchange segment left epoch {self.epoch}; start the engine again"
                )
            if left <= WAIT_SLICE_NS and deadline is not None:
                return False

    def poison(self, code: PoisonCode, actor: str = "driver") -> None:
        """End every wait in every process; the first poison stays."""
        self.native.poison(int(code), self._code(actor))

    @property
    def poisoned(self) -> Poison | None:
        """The first poison, or None."""
        found = self.native.poisoned()
        if found is None:
            return None
        code, actor = found
        name = self.actors[actor] if actor < len(self.actors) else "driver"
        return Poison(PoisonCode(code), name)

    def raise_if_poisoned(self) -> None:
        """Raise what the poison stands for.

        Raises:
            ActorLostError: an actor died, failed or got stuck.
            PlanReplaced: orderly ended for a new plan, in the name of an actor.
            KernelError: orderly ended for good, in the name of the driver.
        """
        found = self.poisoned
        if found is None:
            return
        if found.replaces_plan:
            raise PlanReplaced("the plan was replaced; ask again")
        if found.actor == "driver":
            raise KernelError(
                f"the exchange was ended ({found.code.name.lower()} by {found.actor})"
            )
        raise ActorLostError(found.actor, f"the {found.actor} actor {_ENDS[found.code]}")

    def watch(self, pids: Mapping[int, str]) -> Watcher:
        """Poison this segment as soon as one of the processes (pid: actor or "driver") ends."""
        return Watcher(self.native, {pid: self._code(who) for pid, who in pids.items()})

    def _code(self, actor: str) -> int:
        return DRIVER if actor == "driver" else self.actors.index(actor)

    def actor_state(self, actor: str) -> ActorState:
        """An actor's counters at this moment."""
        return copied(self.native.actor[self._code(actor)], ActorState)

    def view(self, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        """Writable bytes of the segment; keeps the mapping alive.

        Raises:
            ConfigError: the range leaves the segment.
        """
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.native.bytes:
            raise ConfigError(
                f"segment: bytes {offset} to {offset + n_bytes} of {self.native.bytes} asked for"
            )
        assert self._memory is not None  # native, above, has raised otherwise
        return np.frombuffer(self._memory, dtype=np.uint8, count=n_bytes, offset=offset)

    def flags(self, offset: int, count: int) -> NDArray[np.uint32]:
        """What the flags are set to, by index: the passes that signalled them last."""
        values: NDArray[np.uint32] = self.view(offset, count * FLAG.itemsize).view(FLAG)["value"]
        return values

    def floats(self, offset: int, rows: int, d: int) -> NDArray[np.float32]:
        """Writable float32 view [rows, d] of a payload slot."""
        return self.view(offset, 4 * rows * d).view(np.float32).reshape(rows, d)

    def close(self) -> None:
        """Give up the mapping and the descriptor; idempotent. Poison first if others may wait."""
        if self._close_fd is not None:
            self._close_fd()
        self._native, self._fd = None, -1
        memory, self._memory = self._memory, None
        if memory is not None:
            with suppress(BufferError):  # a view or a native user is alive: it goes with the last
                memory.close()

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
