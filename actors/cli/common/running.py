"""An engine for the length of a command: launched, closed however the command ends.

Used by the commands that run an engine. Ray is imported here, inside the function, and nowhere
else in the command line.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import TYPE_CHECKING, Any

from hotcold.actors.cli.common import output
from hotcold.native.errors import KernelError

if TYPE_CHECKING:
    from hotcold.actors import Engine, GenerationStats
    from hotcold.runtime.options.config import EngineConfig

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SWALLOWED_S = 0.5  # after which an exception that still unwinds is in some `finally`
# What Ray prints of a lost worker, at length; the engine's own error says it in one line.
WORKER_DIED = "A worker died or was killed while executing a task by an unexpected system error"


class Terminated(BaseException):
    """SIGTERM, raised where the main thread was; not an Exception, so that nothing swallows it."""


class StopSignals:
    """Ctrl-C and SIGTERM as exceptions, so that `finally` closes the engine.

    For the length of a block. Ray's start replaces handlers set before it, so `install` is called
    once more after a launch. While the engine closes, the first further signal is only answered and
    the second ends the process at once (Ray's processes notice and follow).

    Compiled code may swallow the exception without a word: torch's did, on a busy machine. So it is
    looked whether the main thread is on its way out, and if not the signal is sent again.
    """

    def __init__(self) -> None:
        self._closing = self._left = False
        self._insisted = False
        self._before: dict[signal.Signals, Any] = {}
        # Python delivers signals to the main thread only; elsewhere the caller keeps its own.
        self._able = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopSignals":
        self.install()
        return self

    def __exit__(self, *exception: object) -> None:
        """Give back the handlers that were there first."""
        self._left = True
        for number, previous in self._before.items():
            signal.signal(number, previous if previous is not None else signal.SIG_DFL)

    def install(self) -> None:
        """Put the handlers in; again, if something replaced them."""
        if not self._able:
            return
        for number in SIGNALS:
            previous = signal.signal(number, self._handle)
            self._before.setdefault(number, previous)

    def close(self) -> None:
        """From here on signals no longer raise."""
        self._closing = True

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._closing:
            again = threading.Timer(SWALLOWED_S, self._again, (number,))
            again.daemon = True
            again.start()
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        if self._insisted:
            os._exit(128 + number)
        self._insisted = True
        output.note("hotcold: still closing; once more to leave at once")

    def _again(self, number: int) -> None:
        """On a thread of its own: send a signal whose exception has gone."""
        error: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
        while isinstance(error, tuple):  # Python 3.10 and 3.11 hold type, value, traceback
            error = error[1]
        while error is not None and not isinstance(error, (KeyboardInterrupt, Terminated)):
            error = error.__context__
        if error is None and not self._left and not self._closing:
            os.kill(os.getpid(), number)


@contextmanager
def running_engine(options: "EngineConfig", **more: object) -> Iterator["Engine"]:
    """Launch an engine, hand it out, and close it whatever happens; say what it recovered from.

    `more` are further arguments of Engine.launch, which win over the options.

    Raises:
        HotcoldError: what Engine.launch raises.
        KeyboardInterrupt: Ctrl-C.
        Terminated: SIGTERM.
    """
    with StopSignals() as signals:
        if sys.stderr.isatty():
            output.note("hotcold: starting the actors gpu, cpu and predictor")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", WORKER_DIED)
        from hotcold.actors import Engine

        # Ray prints what befalls its workers to standard output, which is for results.
        with redirect_stdout(sys.stderr), signal_inside():
            try:
                engine = Engine.launch(**{**vars(options), **more})
            except SystemExit as stop:
                # Ray's own handler, in place while Ray starts, exits with the bare signal number.
                if stop.code == signal.SIGTERM:
                    raise Terminated from None
                raise
            try:
                signals.install()
                yield engine
                for recovery in engine.recoveries:
                    output.note(str(recovery))
            finally:
                signals.close()
                engine.close()


@contextmanager
def signal_inside() -> Iterator[None]:
    """Unwrap a signal that came in Ray's compiled code: there it ends up in a SystemError."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, (KeyboardInterrupt, Terminated)):
            raise error.__cause__ from None
        raise


def figures(engine: "Engine") -> "GenerationStats":
    """Figures of the generation that has just ended.

    Raises:
        KernelError: there are none, though it ended without an error.
    """
    if engine.last is None:
        raise KernelError("the engine ended a generation without its figures")
    return engine.last
