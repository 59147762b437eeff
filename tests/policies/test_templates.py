from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hotcold.policies import check_placement_policy, check_schedule_policy
from hotcold.policies.templates.predictor import Mine as MinePredictor
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.plugins.registry import find


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    """A template as the user gets it, in a file: mine("placement") -> "mine.py:Mine"."""
    from hotcold.actors.cli.commands.policies import template_text

    def write(kind: str) -> str:
        file = tmp_path / "mine.py"
        file.write_text(template_text(kind))
        return f"{file}:Mine"

    return write


def test_the_placement_template_conforms(mine: Any) -> None:
    check_placement_policy(mine("placement"))


def test_the_schedule_template_conforms(mine: Any) -> None:
    check_schedule_policy(mine("schedule"))


def test_the_predictor_template_prepares_and_agrees_with_itself(mine: Any) -> None:
    assert find("predictor", mine("predictor"))
    prepared = prepare_model(EngineConfig(predictor=MinePredictor(rank=8)))
    assert prepared.predicts and (prepared.problem.predictor_density_L > 0).all()
    predictor = prepared.config.predictor
    x_BD = np.random.default_rng(0).standard_normal((2, prepared.bundle.spec.d_model))
    scores_BN = predictor.scores(x_BD.astype(np.float32), 0)
    assert scores_BN.shape == (2, prepared.bundle.spec.n_neurons)
