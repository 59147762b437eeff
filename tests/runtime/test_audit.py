"""Recall, precision and density against counts made by hand."""

import numpy as np
import pytest

from hotcold.runtime.audit import PredictionAudit


def test_by_hand() -> None:
    proposed = np.array([[True, True, False, False], [True, False, False, False]])
    fired = np.array([[True, False, True, False], [True, False, False, False]])
    audit = PredictionAudit.of(proposed, fired)
    assert audit == PredictionAudit(both=2, proposed=3, fired=3, total=8)
    assert (audit.recall, audit.precision, audit.density) == (2 / 3, 2 / 3, 3 / 8)


def test_parts_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    proposed, fired = rng.random((7, 30)) < 0.4, rng.random((7, 30)) < 0.2
    total = PredictionAudit()
    for a, b in zip(proposed, fired, strict=True):
        total += PredictionAudit.of(a, b)
    assert total == PredictionAudit.of(proposed, fired)


def test_nothing_fired_or_proposed() -> None:
    none = np.zeros((2, 3), dtype=bool)
    audit = PredictionAudit.of(none, none)
    assert (audit.recall, audit.precision, audit.density) == (1.0, 1.0, 0.0)
    assert PredictionAudit().density == 0.0
    assert PredictionAudit.of(none, ~none).recall == 0.0
    assert PredictionAudit.of(~none, none).precision == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        PredictionAudit.of(np.zeros((1, 3), dtype=bool), np.zeros((2, 3), dtype=bool))
