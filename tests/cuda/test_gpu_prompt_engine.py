"""The GPU executor lost inside a dense prompt pass: noticed, replaced, and the same tokens."""

import signal
from typing import Any

import pytest
from support.gpu import Share

from hotcold.actors import Engine

pytestmark = [pytest.mark.gpu, pytest.mark.ray, pytest.mark.alone]
PROMPT = "There was a little girl who lived near the forest. " * 8
SAMPLING: dict[str, Any] = {"max_tokens": 20, "temperature": 0.8, "seed": 5, "ignore_eos": True}


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGSTOP, "stuck"), (signal.SIGKILL, "died")])
@pytest.mark.usefixtures("plugin", "one_ray")
def test_lost_in_a_dense_prompt(number: signal.Signals, cause: str) -> None:
    import ray

    options: dict[str, Any] = {"policy": Share(0.5), "vram": "2GiB", "predictor": "exact"}
    with Engine.launch(prompt_form="dense", stuck_s=1.0, restarts=1, **options) as engine:
        undisturbed = [token.id for token in engine.generate(PROMPT, **SAMPLING)]
        assert engine.last is not None
        assert engine.last.prompt_tokens > 64
        passes = engine.stats().actors["gpu"].passes
        assert passes == SAMPLING["max_tokens"] - 1  # none was of the prompt
        ray.get(engine.actors["gpu"].arm.remote("embed", passes + 1, int(number)))
        assert [token.id for token in engine.generate(PROMPT, **SAMPLING)] == undisturbed
        (recovery,) = engine.recoveries
        assert (recovery.actor, recovery.cause) == ("gpu", cause)
        assert 0 < recovery.notice_s < 5
