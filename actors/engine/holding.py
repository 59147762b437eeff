"""Who uses an engine: one generation alone, or several beside each other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hotcold.native.errors import ConfigError


class Held:
    """Whether generations of a client run, and of which kind."""

    def __init__(self) -> None:
        self._busy, self._counting, self._beside = threading.Lock(), threading.Lock(), 0

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the engine while no generation of this client runs.

        Raises:
            ConfigError: one does.
        """
        self._take()
        try:
            yield
        finally:
            self._busy.release()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Hold it beside others that do so.

        Raises:
            ConfigError: a generation runs alone.
        """
        with self._counting:
            if not self._beside:
                self._take()
            self._beside += 1
        try:
            yield
        finally:
            with self._counting:
                self._beside -= 1
                if not self._beside:
                    self._busy.release()

    def _take(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise ConfigError("a generation is running; finish or close its iterator first")
