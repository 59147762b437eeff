"""Typed wrappers over the C exchange: segment header, flags, poison, watcher, hop.

Called by `hotcold.runtime.exchange.segment`, which decides the layout and owns the memory; the
executors' wrappers take `NativeSegment.pointer`. Knows addresses and C structs, no files and no
models.
"""

import os
import weakref
from collections.abc import Mapping, Sequence
from mmap import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import MAX_ACTORS, MAX_WATCHED, POISON_SHIFT, SEGMENT, Status
from hotcold.native.bindings._ffi import check, copied, failure, ffi, lib, pointer
from hotcold.native.errors import ConfigError

__all__ = ["NativeSegment", "Watcher", "copied", "hop"]

Buffer = mmap | bytearray | memoryview


class NativeSegment:
    """The C view of one mapped segment; keeps the mapping alive as long as it lives itself.

    Attributes that are not below are the header's: fields of hc_segment by name.

    Args:
        buffer: writable memory that starts on a cache line; room for the header at least.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = ffi.from_buffer("char[]", buffer, require_writable=True)
        self.bytes = len(self._buffer)
        if self.bytes < SEGMENT.itemsize:
            raise ValueError(f"a segment of {self.bytes} bytes is shorter than its header")
        self.pointer: Any = ffi.cast("hc_segment *", self._buffer)

    def init(
        self,
        epoch: int,
        n_flags: int,
        flags_offset: int,
        span_offsets: tuple[int, ...],
        span_capacity: int,
    ) -> None:
        """Write a fresh header and zero the flags; ConfigError for parts that do not fit."""
        if len(span_offsets) > MAX_ACTORS:
            raise ValueError(f"{len(span_offsets)} span offsets, of {MAX_ACTORS} actors at most")
        spans = np.zeros(MAX_ACTORS, np.int64)
        spans[: len(span_offsets)] = span_offsets
        offsets = pointer(spans, "int64_t *")
        status = lib.hc_segment_init(
            self.pointer, self.bytes, epoch, n_flags, flags_offset, offsets, span_capacity
        )
        check(status)

    def init_owners(self, offset: int, tables: Sequence[int]) -> None:
        """Say where the owners of neurons are (abi/moves.h): offsets of header and tables."""
        self.pointer.owners_offset = offset
        self.owners.table = list(tables)

    @property
    def owners(self) -> Any:
        """The header of the tables of owners, an hc_owners."""
        base = ffi.cast("char *", self.pointer) + self.pointer.owners_offset
        return ffi.cast("hc_owners *", base)

    def check(self, epoch: int) -> None:
        """Raise ConfigError or KernelError unless this is a whole segment of that epoch."""
        check(lib.hc_segment_check(self.pointer, self.bytes, epoch))

    def __getattr__(self, name: str) -> Any:
        """A field of hc_segment, as it is now."""
        return getattr(self.pointer, name)

    def poison(self, code: int, actor: int) -> None:
        """Poison and wake every sleeper; the first poison stays."""
        lib.hc_segment_poison(self.pointer, code, actor)

    def poisoned(self) -> tuple[int, int] | None:
        """(code, actor) of the first poison, or None."""
        word = int(lib.hc_segment_poisoned(self.pointer))
        return divmod(word, 1 << POISON_SHIFT) if word else None

    def signal(self, flag: int, seq: int) -> None:
        """Set a flag to seq (mod 2**32) and wake who sleeps on it."""
        self._check_flag(flag)
        lib.hc_flag_signal(self.pointer, flag, seq & 0xFFFFFFFF)

    def value(self, flag: int) -> int:
        """Current value of a flag."""
        return self._words(flag)[0]

    def sleepers(self, flag: int) -> int:
        """Waiters registered as asleep on a flag (a killed one stays counted; it costs a wake)."""
        return self._words(flag)[1]

    def wait(self, flag: int, seq: int, epoch: int, timeout_ns: int) -> tuple[Status, int]:
        """Wait until a flag equals seq (mod 2**32), GIL released; a negative time: forever.

        Returns:
            How it ended (OK, ERR_POISONED, ERR_EPOCH or ERR_TIMEOUT), and nanoseconds waited.
        """
        self._check_flag(flag)
        waited = ffi.new("int64_t *")
        status = lib.hc_flag_wait(self.pointer, flag, seq & 0xFFFFFFFF, epoch, timeout_ns, waited)
        return Status(status), int(waited[0])

    def _words(self, flag: int) -> tuple[int, int]:
        self._check_flag(flag)
        base = ffi.cast("char *", self.pointer) + self.pointer.flags_offset
        word = ffi.cast("hc_flag *", base)[flag]
        return int(word.value), int(word.sleepers)

    def _check_flag(self, flag: int) -> None:
        if not 0 <= flag < self.n_flags:
            raise ValueError(f"flag {flag} is not one of the segment's {self.n_flags}")


class Watcher:
    """A native thread that poisons a segment (DIED, actor) as soon as one of the processes ends.

    pids: actor index by process id. One that is gone already poisons at once.

    Raises:
        ConfigError: a pid below 1, or more than 64 of them.
        KernelError: the kernel has no pidfd_open (Linux before 5.3), or no more descriptors.
    """

    def __init__(self, segment: NativeSegment, pids: Mapping[int, int]) -> None:
        if len(pids) > MAX_WATCHED or any(not 0 < pid < 2**31 for pid in pids):
            raise ConfigError(
                f"cannot watch processes {list(pids)}: give at most {MAX_WATCHED} ids above 0"
            )
        ids = np.asarray(list(pids), dtype=np.int32)
        actors = np.asarray(list(pids.values()), dtype=np.int32)
        watcher = lib.hc_watcher_start(
            segment.pointer, pointer(ids, "int32_t *"), pointer(actors, "int32_t *"), ids.size
        )
        if watcher == ffi.NULL:
            raise failure()
        self._stop = weakref.finalize(self, _stop_watcher, watcher, os.getpid(), segment)

    def close(self) -> None:
        """End the thread; idempotent, and nothing in a forked child, which has no such thread."""
        self._stop()

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _stop_watcher(watcher: object, owner: int, segment: NativeSegment) -> None:
    """The segment is an argument so that it lives until the thread is gone."""
    if os.getpid() == owner:
        lib.hc_watcher_stop(watcher)


def hop(
    segment: NativeSegment,
    side: int,
    flag_out: int,
    flag_in: int,
    rounds: int,
    *,
    epoch: int,
    core: int = -1,
) -> NDArray[np.uint32]:
    """Play one side of the ping-pong in C: side 0 signals first and measures, 1 answers.

    core: what to pin this thread to meanwhile; -1: none.

    Returns:
        Nanoseconds of every round trip on side 0, an empty array on side 1.
    """
    rtt_ns = np.zeros(rounds if side == 0 else 0, dtype=np.uint32)
    out = pointer(rtt_ns, "uint32_t *") if side == 0 else ffi.NULL
    check(lib.hc_hop(segment.pointer, side, flag_out, flag_in, rounds, epoch, core, out))
    return rtt_ns
