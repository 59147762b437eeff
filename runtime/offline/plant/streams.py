"""Writing files of tens of gigabytes: hashed and written by threads, never held in memory.

`BlockWriter` computes the checksum that runtime/model/checkpoints/digest.py defines, block by block
in parallel; `TensorStream` writes safetensors whose tensors come one by one and whose metadata is
known last. Used by `writers`; know nothing about models.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from hotcold.runtime.model.checkpoints.digest import BLOCK_BYTES

THREADS = min(16, os.cpu_count() or 1)
IN_FLIGHT = 2 * THREADS  # blocks waiting to be hashed and written
CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
STAGE_BYTES = 64 << 20  # of pinned memory, through which a GPU's tensors come
_METADATA_ROOM = 96  # bytes a metadata value may take beyond its placeholder


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes; copied to the host if need be."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    array: Any = flat.numpy()
    return memoryview(array)


@lru_cache(maxsize=1)
def _stage() -> torch.Tensor:
    """Pinned memory, because copies into fresh pageable memory run at a tenth of the bus's rate."""
    return torch.empty(STAGE_BYTES, dtype=torch.uint8, pin_memory=True)


def raw_pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, piece by piece; each must be used up before the next is asked for."""
    if tensor.device.type == "cpu":
        yield raw_bytes(tensor)
        return
    flat, stage = tensor.detach().contiguous().reshape(-1).view(torch.uint8), _stage()
    for begin in range(0, flat.numel(), STAGE_BYTES):
        piece = flat[begin : begin + STAGE_BYTES]
        held = stage[: piece.numel()]
        held.copy_(piece)
        array: Any = held.numpy()
        yield memoryview(array)


class BlockWriter:
    """Appends to a file; `digest()` is what `file_digest` gives for it.

    Args:
        path: the file; must not exist.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._threads = ThreadPoolExecutor(THREADS, "hotcold-plant")
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

    def tensor(self, tensor: torch.Tensor) -> None:
        """Append a tensor's bytes."""
        for piece in raw_pieces(tensor):
            self.write(piece)

    def zeros(self, count: int) -> None:
        """Append zero bytes."""
        self.write(memoryview(bytes(count)))

    def _send(self) -> None:
        offset = self.written - len(self._block)
        self._jobs.append(self._threads.submit(self._put, self._block, offset))
        self._block = bytearray()
        while len(self._jobs) > IN_FLIGHT:
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

    def __enter__(self) -> "BlockWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class TensorStream:
    """A safetensors file whose tensors are written in the order they were announced.

    Args:
        path: the file; must not exist.
        tensors: shape and dtype by name, in file order.
        metadata: names of the entries `finish` will be given.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        metadata: tuple[str, ...] = (),
    ) -> None:
        self._entries: dict[str, object] = {}
        end = 0
        for name, (shape, dtype) in tensors.items():
            size = math.prod(shape) * dtype.itemsize
            self._entries[name] = {
                "dtype": CODES[dtype],
                "shape": list(shape),
                "data_offsets": [end, end + size],
            }
            end += size
        self.bytes = end
        self._left = deque((name, math.prod(s) * t.itemsize) for name, (s, t) in tensors.items())
        blank = self._header({name: "" for name in metadata})
        self._room = -(-(len(blank) + _METADATA_ROOM * (1 + len(metadata))) // 8) * 8
        self._file = path.open("xb")
        self._file.write(bytes(8 + self._room))

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        header = {"__metadata__": {"format": "pt", **metadata}, **self._entries}
        return json.dumps(header, separators=(",", ":")).encode()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor."""
        expected, size = self._left.popleft()
        if name != expected or tensor.nbytes != size:
            raise ValueError(f"{name} of {tensor.nbytes} bytes where {expected} of {size} is due")
        for piece in raw_pieces(tensor):
            self._file.write(piece)

    def finish(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the header over its place; the file is complete and durable then."""
        if self._left:
            raise ValueError(f"{self._left[0][0]} was never written")
        text = self._header(metadata or {})
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text.ljust(self._room))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close the file, complete or not. Idempotent."""
        self._file.close()
