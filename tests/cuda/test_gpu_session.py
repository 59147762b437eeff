"""The whole model with the GPU executor on a GPU: the oracle's logits for every plan and batch."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import Share, check_batches, check_gate_first, check_masked, ids_of, session
from support.models import TinyLlama, write_llama
from support.oracle import Oracle

from hotcold.native.errors import ActorLostError, HotcoldError
from hotcold.native.gpu import nvml
from hotcold.runtime import embedded
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.exchange.segment import PoisonCode
from hotcold.runtime.options.config import EngineConfig, Sampling
from hotcold.runtime.plan.fetch import fetched

pytestmark = pytest.mark.gpu

TINY = {
    "even": TinyLlama(neurons=96),
    "odd": TinyLlama(d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301),
    "tied": TinyLlama(d=24, neurons=40, heads=3, kv_heads=3, tied=True, dtype="float16", seed=1),
    "bfloat16": TinyLlama(d=64, neurons=2500, heads=4, kv_heads=2, dtype="bfloat16", seed=2),
}


@pytest.fixture(params=list(TINY), scope="module")
def tiny(request: pytest.FixtureRequest, plugin: Any, tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    write_llama(folder, TINY[request.param])
    return folder


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("schedule", ["paper", "selective"])
def test_logits_are_the_oracles_gate_first(tiny: Path, share: float, schedule: str) -> None:
    check_gate_first(tiny, Oracle.load(tiny), ids_of(tiny, 50), share, schedule=schedule)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("batch", [32, 5, 1])
def test_logits_are_the_masked_oracles(tiny: Path, share: float, batch: int) -> None:
    options: dict[str, Any] = {
        "predictor": "low-rank",
        "settings": {"predictor.rank": "6", "predictor.margin": "0.5"},
    }
    oracle = Oracle.load(tiny)
    proposed = check_masked(tiny, oracle, ids_of(tiny, 45), share, max_batch=batch, **options)
    assert 0.05 < proposed < 0.95


@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("fetch", [0.4, 1.0])
def test_neurons_read_over_the_bus_change_nothing(
    tiny: Path, predictor: str, share: float, fetch: float
) -> None:
    ids = ids_of(tiny, 40)
    settings = {"schedule.share": str(fetch)}
    with session(tiny, share, predictor=predictor, schedule="fetch", settings=settings) as local:
        logits, masks_TLN = local.logits(ids)
        deployment = local.deployment
        cpu = local.segment.actor_state("cpu")
    on_host_LN = deployment.plan.device_LN == 1
    taken_LN = fetched(deployment.plan.device_LN, deployment.fetch_L)
    assert deployment.gpu is not None
    assert (taken_LN.sum(axis=1) == np.floor(fetch * on_host_LN.sum(axis=1))).all()
    assert taken_LN.any() and (cpu.passes == 0) == (fetch == 1.0)
    expected = Oracle.load(tiny).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)


def test_bus_share_fetches_beside_any_schedule(tiny: Path) -> None:
    ids = ids_of(tiny, 40)
    with session(tiny, 0.5, schedule="paper", bus_share=0.4) as local:
        logits, _ = local.logits(ids)
        assert set(local.deployment.fetch_L) == {0.4}
    np.testing.assert_allclose(logits, Oracle.load(tiny).forward(ids).logits_TV, atol=1e-3, rtol=0)


def test_batch_changes_no_bit(tiny: Path) -> None:
    check_batches(tiny, ids_of(tiny, 37), (32, 8, 3, 1), predictor="low-rank")


@pytest.mark.parametrize("predictor_dtype", [None, "int8"])
@pytest.mark.parametrize("d", [320, 1024])
def test_batch_changes_no_bit_of_long_rows(
    plugin: Any, tmp_path: Path, d: int, predictor_dtype: str | None
) -> None:
    """Long enough that threads of a block share a row's norm in more than one way."""
    model = TinyLlama(d=d, neurons=1500, heads=d // 64, kv_heads=1, dtype="float16", seed=d)
    write_llama(tmp_path / "long", model)
    options: dict[str, Any] = {"predictor": "low-rank", "predictor_dtype": predictor_dtype}
    check_batches(tmp_path / "long", ids_of(tmp_path / "long", 40), (32, 8, 2, 1), **options)


def test_a_pass_counts_to_the_last_neuron(plugin: Any, tmp_path: Path) -> None:
    """More of them than a float holds: 2^24 and an odd number."""
    layers, neurons, batch = 17, 32767, 31
    assert layers * neurons * batch > 1 << 24
    model = TinyLlama(d=8, layers=layers, neurons=neurons, heads=1, kv_heads=1, dtype="float16")
    write_llama(tmp_path / "many", model)
    with session(tmp_path / "many", 1.0, predictor="exact") as local:
        local.logits(ids_of(tmp_path / "many", batch))
        state = local.segment.actor_state("gpu")
        assert state.passes == 1
        assert state.gate_rows == layers * neurons * batch


@pytest.mark.alone  # five threads take three cores, more than a process beside others has
@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
def test_the_cpu_executors_threads_change_no_bit(tiny: Path, predictor: str) -> None:
    """Cold sums of 1, 2 and 5 threads beside the same GPU; a second run of each is the same too."""
    ids, runs = ids_of(tiny, 37), []
    for threads in (1, 2, 5, 1):
        with session(tiny, 0.5, threads=threads, predictor=predictor) as local:
            assert local.deployment.cores["cpu"].threads == threads
            logits, masks_TLN = local.logits(ids)
            runs.append(logits)
            assert local.segment.actor_state("cpu").up_down_rows > 0
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0], other)
    expected = Oracle.load(tiny).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(runs[0], expected.logits_TV, atol=1e-3, rtol=0)


def test_int8_predictors_and_half_caches_stay_close(tiny: Path) -> None:
    ids = ids_of(tiny, 40)
    expected = Oracle.load(tiny).forward(ids).logits_TV
    with session(tiny, 0.5, kv_dtype="float16") as local:
        logits, _ = local.logits(ids)
    assert np.abs(logits - expected).max() < 0.05
    options: dict[str, Any] = {"predictor": "low-rank", "predictor_dtype": "int8"}
    with session(tiny, 0.5, **options) as local:
        logits, masks_TLN = local.logits(ids)
    masked = Oracle.load(tiny).forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    np.testing.assert_allclose(logits, masked.logits_TV, atol=1e-3, rtol=0)


def test_the_embedded_model_generates_what_the_cpu_device_does(
    plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(max_tokens=100, ignore_eos=True)
    texts = []
    for mode in ("require", "off"):
        monkeypatch.setenv("HOTCOLD_CUDA", mode)
        prepared = prepare_model(EngineConfig(model=embedded.path(), predictor="exact"))
        assert (prepared.gpu is not None) == (mode == "require")
        with LocalSession(deploy(prepared, solve(prepared))) as local:
            prompt = local.text.ids("Once upon a time", prepared.context)
            texts.append([id_ for id_, _ in local.sample(prompt, sampling)])
    assert texts[0] == texts[1]


@pytest.mark.alone
@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
def test_poison_ends_a_parked_pass_and_frees_the_memory(tiny: Path, predictor: str) -> None:
    """The CPU executor never comes: the graph is parked on a flag of a cold sum."""
    before = nvml.used_bytes()
    ids = ids_of(tiny, 40)
    prepared = prepare_model(
        EngineConfig(model=tiny, vram="2GiB", policy=Share(0.5), predictor=predictor)
    )
    deployment = deploy(prepared, solve(prepared))
    deployment.programs["cpu"] = deployment.programs["cpu"][:0]
    local = LocalSession(deployment)
    try:
        failure: list[Any] = []

        def ask() -> None:
            try:
                local.logits(ids)
            except HotcoldError as error:
                failure.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        assert asking.is_alive()
        began = time.monotonic()
        local.segment.poison(PoisonCode.DIED, "cpu")
        asking.join(5)
        assert not asking.is_alive()
        assert time.monotonic() - began < 2
        assert isinstance(failure[0], ActorLostError)
        assert failure[0].actor == "cpu"
    finally:
        local.close()
    after = nvml.used_bytes()
    assert before is not None
    assert after is not None
    assert after - before < 700 << 20  # at most the context, which stays with the process


def test_a_budget_that_is_too_small_is_refused(tiny: Path) -> None:
    with pytest.raises(HotcoldError):
        session(tiny, 1.0, vram="100MiB")
