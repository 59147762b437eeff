"""Checksums of large files, and stamps that avoid computing them again.

The checksum of a file is the SHA-256 of the SHA-256 digests of its 16 MiB blocks, so that it can be
computed while the file is written and verified by several threads. Once verified, a *stamp* records
size, times and inode of each file; as long as they are unchanged, the next start reads no weights.
Used by the bundle reader and writer.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from hotcold.runtime.files.atomic import write_atomically

BLOCK_BYTES = 16 << 20
THREADS = min(16, os.cpu_count() or 1)
STAMP = "verified.json"
# A write within the same tick of the file system's clock leaves the times as they are; a stamp made
# this soon after the last change is therefore not used, and is renewed by the next start.
RACY_NS = 50_000_000


class DigestWriter:
    """Writes to a file, open in binary at its start, and computes its checksum on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._block = hashlib.sha256()
        self._in_block = 0
        self._digests = hashlib.sha256()
        self.written = 0

    def write(self, data: memoryview) -> None:
        """Append bytes (a one-dimensional view)."""
        self._file.write(data)
        self.written += len(data)
        while len(data):
            piece = data[: BLOCK_BYTES - self._in_block]
            self._block.update(piece)
            self._in_block += len(piece)
            data = data[len(piece) :]
            if self._in_block == BLOCK_BYTES:
                self._end_block()

    def _end_block(self) -> None:
        self._digests.update(self._block.digest())
        self._block, self._in_block = hashlib.sha256(), 0

    def hexdigest(self) -> str:
        """The checksum of all that was written; call once, at the end."""
        if self._in_block:
            self._end_block()
        return self._digests.hexdigest()


class BlockWriter:
    """Appends to a file by threads; `digest()` is what `file_digest` gives for it.

    Holds twice as many blocks in memory as there are threads.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._threads = ThreadPoolExecutor(THREADS, "hotcold-write")
        self._block = bytearray()
        self._jobs: deque[Future[bytes]] = deque()
        self._digests = hashlib.sha256()
        self.written = 0

    def write(self, data: memoryview) -> None:
        """Append bytes; they are copied, the caller may change them at once.

        Raises:
            OSError: writing failed, now or for an earlier block.
        """
        while len(data):
            piece = data[: BLOCK_BYTES - len(self._block)]
            self._block += piece
            self.written += len(piece)
            data = data[len(piece) :]
            if len(self._block) == BLOCK_BYTES:
                self._send()

    def zeros(self, count: int) -> None:
        """Append zero bytes."""
        self.write(memoryview(bytes(count)))

    def _send(self) -> None:
        offset = self.written - len(self._block)
        self._jobs.append(self._threads.submit(self._put, self._block, offset))
        self._block = bytearray()
        while len(self._jobs) > 2 * THREADS:
            self._digests.update(self._jobs.popleft().result())

    def _put(self, block: bytearray, offset: int) -> bytes:
        digest = hashlib.sha256(block).digest()
        rest = memoryview(block)
        while rest:
            done = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[done:], offset + done
        return digest

    def digest(self) -> str:
        """Finish, make it durable, and return the checksum; call once."""
        if self._block:
            self._send()
        while self._jobs:
            self._digests.update(self._jobs.popleft().result())
        os.fsync(self._fd)
        return self._digests.hexdigest()

    def close(self) -> None:
        """End the threads and close the file. Idempotent."""
        self._threads.shutdown(cancel_futures=True)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def file_digest(path: Path, progress: Callable[[int, int], None] | None = None) -> str:
    """Checksum of a file, by several threads.

    `progress` is called with bytes done and bytes in all, now and then.
    """
    size = path.stat().st_size
    offsets = range(0, size, BLOCK_BYTES)
    digests = hashlib.sha256()
    with path.open("rb") as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:

        def digest(offset: int) -> bytes:
            block = hashlib.sha256()
            end = min(offset + BLOCK_BYTES, size)
            while offset < end:
                piece = os.pread(file.fileno(), min(1 << 20, end - offset), offset)
                if not piece:
                    break
                block.update(piece)
                offset += len(piece)
            return block.digest()

        for i, result in enumerate(threads.map(digest, offsets)):
            digests.update(result)
            if progress is not None:
                progress(min(size, (i + 1) * BLOCK_BYTES), size)
    return digests.hexdigest()


def _state(paths: dict[str, Path]) -> dict[str, list[int]]:
    stats = {name: path.stat() for name, path in paths.items()}
    return {
        name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev]
        for name, s in stats.items()
    }


def write_stamp(stamps: list[Path], checksum: str, paths: dict[str, Path]) -> None:
    """Record that these files were just verified, in the first place that can be written.

    Where none can be written, every start verifies in full; that is slow, not wrong.
    """
    data = {"checksum": checksum, "time_ns": time.time_ns(), "files": _state(paths)}
    for stamp in stamps:
        with suppress(OSError):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(stamp, json.dumps(data).encode())
            return


def has_stamp(stamps: list[Path], checksum: str, paths: dict[str, Path]) -> bool:
    """Whether these very files were verified before against this checksum."""
    state = _state(paths)
    changed_ns = max((max(s[1], s[2]) for s in state.values()), default=0)
    for stamp in stamps:
        try:
            data: Any = json.loads(stamp.read_bytes())
            if (
                data["checksum"] == checksum
                and data["files"] == state
                and data["time_ns"] - changed_ns > RACY_NS
            ):
                return True
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return False
