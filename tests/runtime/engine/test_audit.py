"""Recall, precision and density against counts made by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.policies.placement.all_cpu import AllCpu
from hotcold.runtime.engine.audit import PredictionAudit, RecallEstimate
from hotcold.runtime.engine.deployment import Deployment, deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig


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


# ---- the audit of a running engine ---------------------------------------------------------------

WORDS = np.random.default_rng(5).integers(3, 300, 60).tolist()


SETTINGS = {"predictor.rank": "8", "predictor.margin": "0.5"}


def deployed(model: Path, threads: int | None = None) -> Deployment:
    options: dict[str, Any] = {"settings": SETTINGS, "policy": AllCpu(), "threads": threads}
    prepared = prepare_model(EngineConfig(model=model, predictor="low-rank", **options))
    return deploy(prepared, solve(prepared))


def audited(deployment: Deployment, every: int, seed: int = 0) -> tuple[Any, RecallEstimate]:
    with LocalSession(replace(deployment, audit_every=every, audit_seed=seed)) as session:
        logits, _ = session.logits(WORDS)
        states = [session.segment.actor_state(actor) for actor in ("gpu", "cpu")]
    fired = sum(state.up_down_rows for state in states)
    return logits, RecallEstimate(fired, sum(s.audit_missed for s in states), every)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_llama(folder, TinyLlama(neurons=120, layers=3))
    return folder


@pytest.fixture(scope="module")
def deployment(model: Path) -> Deployment:
    return deployed(model)


def test_an_audit_of_every_neuron_is_the_recall(model: Path, deployment: Deployment) -> None:
    logits, found = audited(deployment, 1)
    oracle = Oracle.load(model)
    with LocalSession(replace(deployment, audit_every=0)) as session:
        plain, masks_TLN = session.logits(WORDS)
    trace = oracle.forward(WORDS, masks_LTN=masks_TLN.transpose(1, 0, 2))
    missed = int(((trace.gates_LTN > 0) & ~trace.masks_LTN).sum())
    assert missed > 50
    assert found.missed == pytest.approx(missed, abs=2)
    assert found.standard_error == 0
    np.testing.assert_array_equal(logits, plain)


def test_the_interval_covers_the_recall_and_outputs_stay(deployment: Deployment) -> None:
    """A hundred seeds: the 95 % interval holds the true recall at least 90 times."""
    logits, truth = audited(deployment, 1)
    runs = [audited(deployment, 8, seed) for seed in range(100)]
    covered = sum(low <= truth.recall <= high for low, high in (e.interval for _, e in runs))
    assert covered >= 90
    assert len({estimate.missed for _, estimate in runs}) > 10, "the seed changes nothing"
    assert all(np.array_equal(logits, other) for other, _ in runs)
    mean = np.mean([estimate.recall for _, estimate in runs])
    assert mean == pytest.approx(truth.recall, abs=3 * runs[0][1].standard_error / 10)


def test_small_shares_are_audited_in_bursts(tmp_path: Path) -> None:
    """One layer of four at a time, four times as densely: as many in all, and the truth on average.

    What layers differ by is not in the standard error, so intervals may hold a little less often.
    """
    write_llama(tmp_path, TinyLlama(neurons=400, layers=4))
    deployment = deployed(tmp_path)
    _, truth = audited(deployment, 1)
    runs = [audited(deployment, 128, seed)[1] for seed in range(100)]
    recalls = [estimate.recall for estimate in runs]
    spread = float(np.std(recalls))
    assert np.mean(recalls) == pytest.approx(truth.recall, abs=3.5 * spread / 10)
    assert spread == pytest.approx(np.mean([e.standard_error for e in runs]), rel=0.5)
    with LocalSession(replace(deployment, audit_every=128)) as session:
        rows = []
        for _ in range(10):
            before = sum(session.segment.actor_state(a).audit_rows for a in ("gpu", "cpu"))
            _, masks_TLN = session.logits(WORDS)
            after = sum(session.segment.actor_state(a).audit_rows for a in ("gpu", "cpu"))
            rows.append(after - before)
    assert np.mean(rows) == pytest.approx((~masks_TLN).sum() / 128, rel=0.1)


def test_threads_share_an_audit_and_change_nothing(tmp_path: Path) -> None:
    # d 512 of float32: every neuron of a layer is 400 rows of 2 KiB, twelve tasks; three threads
    write_llama(tmp_path, TinyLlama(d=512, heads=8, kv_heads=2, head_dim=64, neurons=400, layers=2))
    one, three = deployed(tmp_path, threads=1), deployed(tmp_path, threads=3)
    for every in (1, 4):
        assert audited(one, every)[1] == audited(three, every)[1]


def test_the_same_seed_gives_the_same_sample(deployment: Deployment) -> None:
    assert audited(deployment, 16, 3)[1] == audited(deployment, 16, 3)[1]


def test_nothing_is_audited_where_nothing_is_guessed(model: Path) -> None:
    prepared = prepare_model(EngineConfig(model=model, predictor="exact"))
    assert deploy(prepared, solve(prepared)).audit_every == 0


def test_estimates_at_the_edges() -> None:
    assert RecallEstimate(0, 0, 128).recall == 1
    assert RecallEstimate(0, 0, 128).standard_error == 0
    none = RecallEstimate(10_000, 0, 128)
    assert none.recall == 1 and none.standard_error > 0 and none.interval[1] == 1
