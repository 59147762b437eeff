"""What a GPU tells of a pass: spans on the host's clock, the audit, predictions made early."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.gpu import ids_of, session
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.runtime.bench import sync
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.offline.plant.making import plant
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.tracing.phases import phase_times
from hotcold.runtime.tracing.spans import Span, read

pytestmark = pytest.mark.gpu

LAYERS = 4
BETWEEN_PASSES_NS = 50_000  # the error is of the last pass, others may have had a larger one
LOW_RANK: dict[str, Any] = {"predictor": "low-rank"}
SETTINGS = {"predictor.rank": "12", "predictor.margin": "0.5"}


@pytest.fixture(scope="module")
def model(plugin: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "four"
    write_llama(folder, TinyLlama(d=64, layers=LAYERS, neurons=700, heads=4, kv_heads=2))
    return folder


def passes(local: LocalSession) -> dict[int, list[Span]]:
    found: dict[int, list[Span]] = {}
    for span in read(local.segment, "gpu"):
        found.setdefault(span.seq, []).append(span)
    return found


def predicted(model: Path, **options: Any) -> LocalSession:
    settings = SETTINGS | options.pop("settings", {})
    return session(model, settings=settings, **LOW_RANK, **options)


def decode(local: LocalSession, model: Path, count: int) -> None:
    for _ in local.sample(ids_of(model, 3), Sampling(max_tokens=count, ignore_eos=True)):
        pass


@pytest.mark.alone
@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
def test_spans_of_a_pass_follow_each_other_on_the_hosts_clock(model: Path, predictor: str) -> None:
    with session(model, 0.5, predictor=predictor) as local:
        began = time.monotonic_ns()
        decode(local, model, 20)
        ended = time.monotonic_ns()
        error = local.segment.actor_state("gpu").clock_error_ns
        found, phases = passes(local), phase_times(local.segment)
    assert 0 < error < 1_000_000
    layer = ["attention", *(["predict"] if predictor == "low-rank" else []), "hot", "merge"]
    for spans in found.values():
        assert [span.op for span in spans] == ["embed", *layer * LAYERS, "head"]
        assert began - error <= spans[0].begin_ns
        assert spans[-1].end_ns <= ended + error
        for span, after in zip(spans, spans[1:], strict=False):
            assert span.begin_ns <= span.ready_ns <= span.end_ns == after.begin_ns
    own = ("embed", "attention", "predict", "hot", "merge", "head", "wait")
    assert sum(phases.get(name, 0) for name in own) == pytest.approx(phases["pass"], rel=1e-6)
    assert phases["cold"] > 0
    assert min(phases.values()) > 0


@pytest.mark.alone
def test_the_cpu_executors_steps_lie_where_the_gpu_waits_for_them(model: Path) -> None:
    """Both clocks are one: a cold sum is done before the GPU has it, within the clock's error."""
    with session(model, 0.5, predictor="exact", schedule="paper") as local:
        decode(local, model, 30)
        margin_ns = local.segment.actor_state("gpu").clock_error_ns + BETWEEN_PASSES_NS
        merges = {(s.seq, s.layer): s for s in read(local.segment, "gpu") if s.op == "merge"}
        colds = [s for s in read(local.segment, "cpu") if (s.seq, s.layer) in merges]
        inputs = {(s.seq, s.layer): s for s in read(local.segment, "gpu") if s.op == "attention"}
    assert len(colds) >= 29 * LAYERS
    for cold in colds:
        key = (cold.seq, cold.layer)
        assert cold.end_ns <= merges[key].ready_ns + margin_ns
        assert cold.ready_ns >= inputs[key].begin_ns - margin_ns


def missed_by_oracle(model: Path, ids: list[int], masks_TLN: NDArray[np.bool_]) -> tuple[int, int]:
    """Pairs that were not proposed, and those of them that fire."""
    masks_LTN = masks_TLN.transpose(1, 0, 2)
    gates_LTN = Oracle.load(model).forward(ids, masks_LTN=masks_LTN).gates_LTN
    return int((~masks_LTN).sum()), int((~masks_LTN & (gates_LTN > 0)).sum())


@pytest.mark.parametrize("batch", [32, 5, 1])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_auditing_every_neuron_counts_every_miss(model: Path, batch: int, share: float) -> None:
    ids = ids_of(model, 45)
    with predicted(model, share=share, max_batch=batch, audit=1) as local:
        logits, masks_TLN = local.logits(ids)
        states = [local.segment.actor_state(actor) for actor in ("gpu", "cpu")]
    with predicted(model, share=share, max_batch=batch, audit=0) as local:
        plain, _ = local.logits(ids)
        assert local.segment.actor_state("gpu").audit_rows == 0
    np.testing.assert_array_equal(logits, plain)
    rows, missed = missed_by_oracle(model, ids, masks_TLN)
    assert missed > 100
    assert sum(state.audit_rows for state in states) == rows
    assert abs(sum(state.audit_missed for state in states) - missed) <= max(3, missed // 500)


@pytest.mark.parametrize("every", [7, 256])
def test_an_audit_draws_each_neuron_with_the_same_probability(model: Path, every: int) -> None:
    ids = ids_of(model, 60)
    with predicted(model, share=1.0, max_batch=1, audit=every) as local:
        _, masks_TLN = local.logits(ids)
        state = local.segment.actor_state("gpu")
    rows, missed = missed_by_oracle(model, ids, masks_TLN)
    for drawn, total in ((state.audit_rows, rows), (state.audit_missed, missed)):
        deviation = np.sqrt(total * (every - 1)) / every
        assert abs(drawn - total / every) < 5 * deviation + 1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_predictions_made_early_are_the_masked_oracles(
    model: Path, depth: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(model, 45)
    ahead: dict[str, Any] = {
        "schedule": "lookahead",
        "settings": {"schedule.depth": str(depth)},
        "share": share,
    }
    runs = []
    for batch in (32, 3, 1):
        with predicted(model, max_batch=batch, **ahead) as local:
            runs.append(local.logits(ids))
    logits, masks_TLN = runs[0]
    expected = Oracle.load(model).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    for other, masks in runs[1:]:
        np.testing.assert_array_equal(logits, other)
        np.testing.assert_array_equal(masks_TLN, masks)
    with predicted(model, share=share) as local:
        _, own_TLN = local.logits(ids)
    assert (own_TLN[:, 0] == masks_TLN[:, 0]).all()
    assert (own_TLN != masks_TLN).any()


def test_exchanges_without_cold_neurons_are_left_out(plugin: Any, tmp_path: Path) -> None:
    quiet = PlantOptions("small", quiet=0.5, quiet_density=0.0008, tokens=1024)
    plant(quiet, tmp_path / "quiet", device="cpu")
    found = sync.measure(EngineConfig(model=tmp_path / "quiet", vram="2GiB"), tokens=40, rounds=1)
    expected = found["plan"]["expected_skipped_per_token"]
    assert found["paper"]["skipped_per_token"] == 0
    assert found["plan"]["quiet_firing"] < 1e-3 and found["plan"]["quiet_resident"] > 0.95
    assert expected > 0.5
    assert found["selective"]["skipped_per_token"] == pytest.approx(expected, abs=0.3)


def test_a_layers_list_leaves_before_the_merge_before_it(model: Path) -> None:
    with predicted(model, schedule="lookahead") as local:
        decode(local, model, 10)
        found = passes(local)
    for spans in found.values():
        order = [(span.op, span.layer) for span in spans]
        for layer in range(1, LAYERS):
            assert order.index(("predict", layer)) < order.index(("merge", layer - 1))
            assert order.index(("predict", layer)) > order.index(("hot", layer - 1))
