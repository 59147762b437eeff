"""An OPT of opt-350m's form as Ray actors, over both transports."""

from pathlib import Path

import numpy as np
import pytest
from support.opt_models import FORMS, write_opt
from support.opt_oracle import OptOracle
from support.oracle import clear_until

from hotcold.actors import Engine

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


@pytest.mark.parametrize("transport", ["native", "ray"])
def test_logits_and_tokens_are_the_oracles(tmp_path: Path, transport: str) -> None:
    folder = write_opt(tmp_path / "m", FORMS["350m"])
    oracle = OptOracle.load(folder)
    ids = np.random.default_rng(0).integers(4, 300, 44).tolist()
    expected = oracle.greedy(ids, 12)
    with Engine.launch(model=folder, transport=transport, vram="60KiB") as engine:
        logits = engine.logits(ids)
        tokens = list(engine.generate(ids, max_tokens=12, ignore_eos=True))
        stats = engine.stats()
    np.testing.assert_allclose(logits, oracle.forward(ids).logits_TV, atol=1e-3, rtol=0)
    clear = clear_until(expected.margins, 2e-3)
    assert clear > 2 and [token.id for token in tokens][:clear] == expected.ids[:clear]
    assert all(stats.actors[name].up_down_rows > 0 for name in ("gpu", "cpu"))
