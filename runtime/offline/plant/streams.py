"""Tensors as bytes, and safetensors whose tensors come one by one and whose metadata is known last.

Used by `writers`; knows nothing about models.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

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


class TensorStream:
    """A safetensors file whose tensors are written in the order they were announced.

    `tensors` are in file order; `metadata` names the entries that `finish` will be given.
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
