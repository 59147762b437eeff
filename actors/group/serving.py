"""Requests that an actor serves at once, and a new plan, which waits until none is left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Serving:
    """Counts requests; those that come while a plan is loaded wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests, self._loading = 0, False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Serve a request, beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._loading)
            self._requests += 1
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._changed.notify_all()

    @contextmanager
    def none(self) -> Iterator[None]:
        """Keep requests out, once those that run have heard of it and ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._loading)
            self._loading = True
            self._changed.wait_for(lambda: not self._requests)
        try:
            yield
        finally:
            with self._changed:
                self._loading = False
                self._changed.notify_all()
