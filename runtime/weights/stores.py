"""The three ways weights are held in memory, below the names of `hotcold.runtime.weights.weights`.

    file     weights.bin mapped read-only: the page cache, shared by all, evictable, 4 KiB pages
    memfd    one copy a machine in huge pages without a name; the first process that needs it fills
             it, all others find it through /proc, the kernel frees it with its last user (SIGKILL
             included). While it lives, the file's pages are not needed and are dropped.
    private  private huge pages of the CPU executor with its own cold records; everything else is
             mapped from the file. Costs the 2 MiB blocks that hold a cold record: where hot and
             cold neurons alternate that is all records of the layers, beside the file's own pages.

Handles files, offsets and bytes, not models. Filling is refused before it begins if memory does not
suffice.
"""

import errno
import fcntl
import logging
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import BudgetError, CheckpointError
from hotcold.runtime.limits import processors
from hotcold.runtime.model.checkpoints.convert import Progress
from hotcold.runtime.units import format_bytes
from hotcold.runtime.weights import host_memory as memory
from hotcold.runtime.weights import memfd
from hotcold.runtime.weights.pages import (
    HUGE_BYTES,
    MADV_COLLAPSE,
    MADV_HUGEPAGE,
    MADV_POPULATE_READ,
    Pages,
)

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]
BLOCK_BYTES = 64 << 20
WAY_OUT = "choose --store file, whose pages the system may take back, or a smaller model"


def map_file(path: Path, nbytes: int) -> mmap.mmap:
    """Map a file read-only and shared.

    Raises:
        CheckpointError: it is gone or has another size.
        BudgetError: the process may not map so much.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            room = memory.available()
            raise BudgetError(
                f"cannot map the {format_bytes(nbytes)} of {path} ({error.strerror}): {room.bound} "
                f"has {format_bytes(room.nbytes)} available; raise the limit on the address space "
                "(ulimit -v) or choose a smaller model"
            ) from error
        raise CheckpointError(f"cannot map {path}: {error}; open the model again") from error
    if len(mapping) != nbytes:
        size = len(mapping)
        mapping.close()
        raise _other_size(path, size, nbytes)
    return mapping


def _other_size(path: Path, size: int, nbytes: int) -> CheckpointError:
    return CheckpointError(
        f"{path} has {size} bytes where the bundle says {nbytes}; open the model again"
    )


class SharedCopy:
    """The machine's one memfd with the bytes of a file: found, or filled now.

    Args:
        path: the file; also what processes lock while they look and fill.
        nbytes: its size.
        identity: checksum of its content; the same content is the same memfd, whatever the path.

    Raises:
        BudgetError: not enough memory; nothing was filled.
        CheckpointError: the file cannot be read, or has another size.
    """

    def __init__(self, path: Path, nbytes: int, identity: str) -> None:
        name = f"hotcold-weights-{identity[:40]}"
        self._fd = -1
        with _read_only(path, nbytes) as file, _locked(file):
            found = memfd.find_finished(name, nbytes)
            self._fd = _filled(name, file, path, nbytes) if found is None else found
        self.filled_here = found is None
        try:
            self.pages = Pages(nbytes, self._fd, writable=False)
        except OSError as error:
            raise _refused(f"mapping {path.name}", nbytes, error) from error
        # Collapsed pages of the memfd are mapped as huge pages here too, instead of on first use.
        self.pages.advise(MADV_POPULATE_READ)

    def close(self) -> None:
        """Let others no longer find it here; idempotent. Memory goes with the last array."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _refused(what: str, nbytes: int, error: OSError) -> BudgetError:
    return BudgetError(
        f"{what} into memory: the system refused {format_bytes(nbytes)} ({error.strerror}); "
        f"{WAY_OUT}"
    )


def _filled(name: str, file: int, path: Path, nbytes: int) -> int:
    """Make, fill and seal the memfd; a read-only descriptor of it."""
    memory.require(nbytes, f"the memfd store of {path.parent.name}", WAY_OUT)
    fd = memfd.create_sealed(name, nbytes)
    try:
        pages = Pages(nbytes, fd, writable=True)
        try:
            fill(pages, file, path, [(0, nbytes)])
        finally:
            pages.close()
        memfd.finish(fd)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(f"filling {path.name}", nbytes, error) from error
    finally:
        os.close(fd)


def private_blocks(
    nbytes: int, starts: Sequence[NDArray[np.int64]], record_bytes: int
) -> list[tuple[int, int]]:
    """Extents [begin, end) of 2 MiB blocks that hold any of the records, ascending, merged.

    starts: offsets of records in a file of nbytes, in any number of arrays.
    """
    all_starts = np.concatenate([np.empty(0, np.int64), *starts])
    ends = (all_starts + record_bytes - 1) // HUGE_BYTES
    first = all_starts // HUGE_BYTES
    longest = int((ends - first).max(initial=0))
    blocks = np.unique(np.concatenate([np.minimum(first + k, ends) for k in range(longest + 1)]))
    extents: list[tuple[int, int]] = []
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1):
        if len(run):
            end = (int(run[-1]) + 1) * HUGE_BYTES
            extents.append((int(run[0]) * HUGE_BYTES, min(end, nbytes)))
    return extents


def private_pages(
    nbytes: int, extents: Sequence[tuple[int, int]], what: str, way_out: str
) -> Pages:
    """Private pages of which these extents will be written, in huge pages.

    Raises:
        BudgetError: not enough memory for them.
    """
    need = sum(end - begin for begin, end in extents)
    memory.require(need, what, way_out, private=True)
    try:
        pages = Pages(nbytes, writable=True)
    except OSError as error:
        raise BudgetError(
            f"{what}: the system refused {format_bytes(nbytes)} ({error.strerror}); {way_out}"
        ) from error
    pages.advise(MADV_HUGEPAGE)
    return pages


def private_copy(path: Path, nbytes: int, extents: Sequence[tuple[int, int]]) -> Pages:
    """Private huge pages with parts of a file, each at its own offset; the rest is not there.

    Raises:
        BudgetError: not enough memory; nothing was filled.
        CheckpointError: the file cannot be read, or has another size.
    """
    pages = private_pages(nbytes, extents, f"the private store of {path.parent.name}", WAY_OUT)
    with _read_only(path, nbytes) as file:
        fill(pages, file, path, extents)
    return pages


def make_huge(pages: Pages, begin: int, end: int) -> None:
    """Get huge pages for [begin, end) before it is written; loses a byte of each.

    One byte in each 2 MiB and a collapse, where the system's settings give none on their own. 0.3 s
    a GiB; collapsing 4 KiB pages after they were written takes 0.6 to 2.
    """
    pages.array()[begin:end:HUGE_BYTES] = 0
    pages.advise(MADV_COLLAPSE, begin, end // HUGE_BYTES * HUGE_BYTES)


def fill(pages: Pages, file: int, path: Path, extents: Sequence[tuple[int, int]]) -> None:
    """Copy extents of a file into memory at the same offsets, by several threads, in huge pages.

    Raises:
        CheckpointError: the file cannot be read.
    """
    pages.advise(MADV_HUGEPAGE)
    blocks = [
        (begin, min(begin + BLOCK_BYTES, stop))
        for start, stop in extents
        for begin in range(start, stop, BLOCK_BYTES)
    ]
    total, done = sum(end - begin for begin, end in blocks), 0
    progress = Progress(f"filling memory with {path.parent.name}")
    target = pages.array().data

    def copy(block: tuple[int, int]) -> int:
        begin, end = block
        make_huge(pages, begin, end)
        at = begin
        while at < end:
            got = os.preadv(file, [target[at:end]], at)
            if not got:
                raise CheckpointError(f"{path} ends at {at} bytes; open the model again")
            at += got
        with suppress(OSError):  # only advice; pages that others map stay
            os.posix_fadvise(file, begin, end - begin, os.POSIX_FADV_DONTNEED)
        return end - begin

    try:
        with ThreadPoolExecutor(min(8, processors().at_once)) as threads:
            for copied in threads.map(copy, blocks):
                done += copied
                progress(done, total)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the disk") from error
    finally:
        target.release()


@contextmanager
def _read_only(path: Path, nbytes: int) -> Iterator[int]:
    """A descriptor of a file of just this size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(
            f"cannot open {path}: {error.strerror}; open the model again"
        ) from error
    try:
        if (size := os.fstat(fd).st_size) != nbytes:
            raise _other_size(path, size, nbytes)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(fd: int) -> Iterator[None]:
    """Be the only process that looks for a memfd or fills it; ends with the process at the latest.

    On a file system without locks (some network ones) nothing is held: two processes that start at
    the same moment may then fill one copy each, which costs memory and harms nothing.
    """
    begin, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not said and time.monotonic() - begin > 2:
                said = True
                logger.info("waiting for another process that fills the weight store")
            time.sleep(0.02)
        except OSError:
            break
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
