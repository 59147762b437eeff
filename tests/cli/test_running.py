"""An engine for the length of a command: what a signal becomes, wherever it arrives."""

import pytest
from support.fake_engine import FakeEngine

from hotcold.actors.cli.common.running import Terminated, running_engine
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
