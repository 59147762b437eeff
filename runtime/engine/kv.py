"""The KV cache of the GPU executor's CPU device: keys and values, float32, a slot a sequence.

It lies in a memfd that the driver made and holds, so it is its own log: when an actor dies, the
rebuilt GPU executor maps the same memory, finds beside the keys and values which tokens they are
of, and every sequence goes on at the position where its tokens stopped, without computing its
prompt again. float32 because float16 moves logits by 0.02 (measured).

Layout: keys | values | tokens | marks, all written by native/loop/; each of the first two is
[L][slot][kv_heads][context][head_dim].
"""

import math
import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotcold.native.abi.generated import KV_MARK, lines
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.weights.memfd import create_sealed, open_sealed

NAME = "KV cache"


@dataclass(frozen=True)
class KvHandle:
    """What another process of this machine needs to map the cache; plain data."""

    pid: int
    fd: int
    plan: int


class KvCache:
    """Keys and values; made by `create`, `attach` or `private`.

    Attributes:
        keys, values: float32 [L, slot, kv_heads, context, head_dim]; they keep the memory mapped.
        tokens: int32 [slot, context], of which they are.
        marks: KV_MARK [slot], of how many.
        plan: tells plans apart; what one has computed is whole for a new request of the same alone.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        spec: ModelSpec,
        context: int,
        slots: int,
        fd: int = -1,
        plan: int = 1,
    ) -> None:
        shape = (spec.n_layers, slots, spec.n_kv_heads, context, spec.head_dim)
        floats = 2 * math.prod(shape)
        both = np.frombuffer(memory, np.float32, floats).reshape(2, *shape)
        self.keys, self.values = both[0], both[1]
        self.tokens: NDArray[np.int32] = np.frombuffer(
            memory, np.int32, slots * context, 4 * floats
        ).reshape(slots, context)
        marks_at = self._bytes(spec, context, slots) - slots * KV_MARK.itemsize
        self.marks = np.frombuffer(memory, KV_MARK, slots, marks_at)
        self._fd, self.plan = fd, plan

    @staticmethod
    def _bytes(spec: ModelSpec, context: int, slots: int) -> int:
        rows = 2 * spec.n_layers * slots * spec.kv_dim * context * 4
        return rows + lines(slots * context * 4) + slots * KV_MARK.itemsize

    @classmethod
    def create(cls, spec: ModelSpec, context: int, slots: int) -> "KvCache":
        """Make a cache that others can attach to; LaunchError: the system refuses the memory."""
        size = cls._bytes(spec, context, slots)
        fd = create_sealed("hotcold-kv", size)
        try:
            return cls(mmap.mmap(fd, size), spec, context, slots, fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, handle: KvHandle, spec: ModelSpec, context: int, slots: int) -> "KvCache":
        """Map the cache of another process; LaunchError: it is gone or something else."""
        fd = open_sealed(handle.pid, handle.fd, NAME)
        try:
            memory = mmap.mmap(fd, cls._bytes(spec, context, slots))
            return cls(memory, spec, context, slots, plan=handle.plan)
        finally:
            os.close(fd)

    @classmethod
    def private(cls, spec: ModelSpec, context: int, slots: int) -> "KvCache":
        """Make a cache in this process's own memory."""
        return cls(mmap.mmap(-1, cls._bytes(spec, context, slots)), spec, context, slots)

    @property
    def handle(self) -> KvHandle:
        """How others attach, while this process keeps the cache open."""
        return KvHandle(os.getpid(), self._fd, self.plan)

    def close(self) -> None:
        """Give up the descriptor; the memory goes with its last mapping. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
