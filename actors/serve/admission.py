"""Who may generate now: the engines' slots, and a bounded queue before them.

First come, first served. A slot is a sequence of an engine. Lives in one event loop.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from hotcold.actors.serve.errors import ApiError

REMEMBERED = 64  # generations whose mean length tells how soon a slot will be free
LONGEST_S = 600


class Line:
    """The generations of one request that have no slot yet."""

    def __init__(self, left: int) -> None:
        self.left = left


class Admission:
    """Slots and the queue before them.

    Attributes:
        slots: generations that run at once.
        most: those and what may wait.
        running: generations that have a slot.
        waiting: generations in the queue.
    """

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.most = slots, slots + queue
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(slots)
        self._taken_s: deque[float] = deque(maxlen=REMEMBERED)

    @contextmanager
    def line(self, count: int) -> Iterator[Line]:
        """Stand in the queue with so many generations.

        Raises:
            ApiError: 429, there is no room for them; says when to come again.
        """
        if self.running + self.waiting + count > self.most:
            seconds = str(self.wait_s())
            raise ApiError(
                429,
                f"{self.running} generations run and {self.waiting} wait, this server takes "
                f"{self.most}; try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": seconds},
            )
        self.waiting += count
        line = Line(count)
        try:
            yield line
        finally:
            self.waiting -= line.left

    @asynccontextmanager
    async def slot(self, line: Line) -> AsyncIterator[None]:
        """Wait for a slot, which frees a place in the queue, and hold it."""
        async with self._free:
            line.left -= 1
            self.waiting -= 1
            self.running += 1
            began = time.monotonic()
            try:
                yield
            finally:
                self.running -= 1
                self._taken_s.append(time.monotonic() - began)

    def wait_s(self) -> int:
        """Whole seconds until a place is free, by what the newest generations took."""
        mean_s = sum(self._taken_s) / len(self._taken_s) if self._taken_s else 1.0
        return min(LONGEST_S, max(1, math.ceil(mean_s / self.slots)))
