"""Requests of an actor that leads: how many, how long, counted as their tokens come."""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.runtime.engine.request import Sampled

KEPT = 4096  # durations that wait to be exported
Stream = Generator[Sampled, None, RequestTimes]


class RequestCounts:
    """Counts since the actor began. Thread-safe.

    Attributes:
        first_token_s, inter_token_s, request_s: seconds, taken out by who exports them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = self._finished = self._prompt_tokens = self._generation_tokens = 0
        self.first_token_s: deque[float] = deque(maxlen=KEPT)
        self.inter_token_s: deque[float] = deque(maxlen=KEPT)
        self.request_s: deque[float] = deque(maxlen=KEPT)

    @contextmanager
    def one(self) -> Iterator[None]:
        """A request, from its arrival to its end."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def counted(self, request: Request, stream: Stream) -> Stream:
        """The same stream; a request that goes on after a loss has no new prompt."""
        begin_ns = last_ns = time.monotonic_ns()
        given = len(request.prompt)
        goes_on = bool(request.n_given) and request.n_given < given
        try:
            while True:
                sampled = next(stream)
                with self._lock:
                    first = last_ns == begin_ns
                    self._prompt_tokens += given if first and not goes_on else 0
                    self._generation_tokens += len(sampled.ids)
                for at_ns in sampled.times_ns:
                    if last_ns > begin_ns:
                        self.inter_token_s.append((at_ns - last_ns) / 1e9)
                    elif not goes_on:
                        self.first_token_s.append((at_ns - begin_ns) / 1e9)
                    last_ns = at_ns
                yield sampled
        except StopIteration as end:
            self.request_s.append((last_ns - begin_ns) / 1e9)
            with self._lock:
                self._finished += 1
            times: RequestTimes = end.value
            return times
        finally:
            stream.close()

    def counts(self, at_once: int) -> dict[str, int]:
        """By name; `at_once` of them run, the others wait."""
        with self._lock:
            return {
                "running": min(self._open, at_once),
                "waiting": max(0, self._open - at_once),
                "finished": self._finished,
                "prompt_tokens": self._prompt_tokens,
                "generation_tokens": self._generation_tokens,
            }
