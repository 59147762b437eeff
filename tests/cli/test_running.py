"""An engine for the length of a command: what a signal becomes, wherever it arrives."""

import signal
import time

import pytest
from support.fake_engine import FakeEngine

from hotcold.actors.cli.common.running import SWALLOWED_S, StopSignals, Terminated, running_engine
from hotcold.runtime.options.config import EngineConfig


@pytest.mark.parametrize("kind", [Terminated, KeyboardInterrupt])
def test_a_signal_in_compiled_code_is_still_that_signal(
    engines: list[FakeEngine], kind: type[BaseException]
) -> None:
    """Cython reports an exception that a handler raised inside it as the cause of a SystemError."""
    with pytest.raises(kind), running_engine(EngineConfig()):
        raise SystemError(
            "<cyfunction CoreWorker.wait> returned a result with an error"
        ) from kind()
    assert engines[0].closed


def test_any_other_failure_stays_what_it_is(engines: list[FakeEngine]) -> None:
    with pytest.raises(SystemError, match="odd"), running_engine(EngineConfig()):
        raise SystemError("odd")
    assert engines[0].closed


def test_a_signal_that_is_swallowed_comes_again() -> None:
    """As compiled code may do; one that unwinds through a long `finally` does not."""
    times = []
    with pytest.raises(Terminated), StopSignals():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Terminated:
            times.append(time.monotonic())
        time.sleep(20)
    assert time.monotonic() - times[0] < 10
    begin, ended = time.monotonic(), False
    with pytest.raises(Terminated), StopSignals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            time.sleep(3 * SWALLOWED_S)
            ended = True
    assert ended and time.monotonic() - begin >= 3 * SWALLOWED_S
