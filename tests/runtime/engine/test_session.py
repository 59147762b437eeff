"""The three loops in one process: right tokens for every plan, batch, thread and predictor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama
from support.oracle import Oracle, top2_margin

from hotcold.native.errors import ConfigError, KernelError
from hotcold.runtime import embedded
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling

TINY = {
    "even": TinyLlama(),
    "odd": TinyLlama(d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, vocab=301),
    "tied": TinyLlama(d=24, neurons=40, heads=3, kv_heads=3, tied=True, dtype="float16", seed=1),
    "bfloat16": TinyLlama(d=40, neurons=64, heads=4, kv_heads=2, dtype="bfloat16", seed=2),
    "llama3": TinyLlama(
        d=32,
        layers=4,
        seed=3,
        new_keys=True,
        context=256,
        rope={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}
SPLITS = {"half": None, "none on the GPU": 0, "all on the GPU": "1GiB", "a few": "200KiB"}


def session(model: Path, **options: Any) -> LocalSession:
    options = {"predictor": "exact", **options}
    prepared = prepare_model(EngineConfig(model=model, **options))
    return LocalSession(deploy(prepared, solve(prepared)))


@pytest.fixture(params=list(TINY))
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    write_llama(folder, TINY[request.param])
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "odd"
    write_llama(folder, TINY["odd"])
    return folder


def ids_of(model: Path, count: int, seed: int = 0) -> list[int]:
    vocab = Oracle.load(model).tensors["model.embed_tokens.weight"].shape[0]
    return np.random.default_rng(seed).integers(3, vocab, count).tolist()


@pytest.mark.parametrize("by", ["predictor", "executors"])
def test_logits_are_the_oracles(tiny: Path, by: str) -> None:
    ids = ids_of(tiny, 50)
    expected = Oracle.load(tiny).forward(ids).logits_TV
    with session(tiny, settings={"predictor.by": by}) as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


def test_embedded_model_continues_as_transformers_does() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        embedded.path(), dtype=torch.float32
    ).eval()
    with session(embedded.path()) as local:
        prompt = local.text.tokenizer.encode("Once upon a time")
        sampling = Sampling(max_tokens=200, ignore_eos=True)
        ours = [id_ for id_, _ in local.sample(prompt, sampling)]
        with torch.inference_mode():
            expected = model(torch.tensor([prompt + ours])).logits[0].double().numpy()
        logits, _ = local.logits(prompt + ours)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)
    # teacher-forced on our own tokens: every one of them must be the model's own choice
    ours_at = expected[len(prompt) - 1 : -1]
    clear = top2_margin(ours_at) > 2e-3
    assert len(ours) == 200
    assert clear.mean() > 0.9
    assert np.array(ours)[clear].tolist() == ours_at.argmax(axis=-1)[clear].tolist()


@pytest.mark.parametrize("split", list(SPLITS))
@pytest.mark.parametrize("schedule", ["paper", "selective", "serial"])
def test_any_split_gives_the_same_logits(written: Path, split: str, schedule: str) -> None:
    ids = ids_of(written, 40)
    expected = Oracle.load(written).forward(ids).logits_TV
    with session(written, vram=SPLITS[split], schedule=schedule) as local:
        logits, _ = local.logits(ids)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("predictor", ["exact", "low-rank"])
def test_threads_and_batch_change_no_bit(written: Path, predictor: str) -> None:
    ids = ids_of(written, 37)
    runs = []
    for threads, batch in [(1, 32), (2, 32), (2, 1), (1, 5)]:
        with session(written, threads=threads, max_batch=batch, predictor=predictor) as local:
            runs.append(local.logits(ids)[0])
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0], other)


def test_predictions_leave_out_exactly_the_unpredicted(written: Path) -> None:
    ids = ids_of(written, 45)
    with session(written, predictor="low-rank", settings={"predictor.rank": "6"}) as local:
        logits, masks_TLN = local.logits(ids)
    oracle = Oracle.load(written)
    expected = oracle.forward(ids, masks_LTN=masks_TLN.transpose(1, 0, 2))
    dense = oracle.forward(ids)
    assert 0.05 < masks_TLN.mean() < 0.95
    np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)
    assert np.abs(logits - dense.logits_TV).max() > 1e-2, "this predictor left nothing out"


def test_exact_masks_are_the_fired_neurons(written: Path) -> None:
    ids = ids_of(written, 20)
    with session(written) as local:
        _, masks_TLN = local.logits(ids)
    gates_LTN = Oracle.load(written).forward(ids).gates_LTN
    clear = np.abs(gates_LTN) > 1e-5
    fired = masks_TLN.transpose(1, 0, 2)
    np.testing.assert_array_equal(fired[clear], (gates_LTN > 0)[clear])


def test_counters_tell_gate_rows_from_up_and_down_rows(written: Path) -> None:
    ids = ids_of(written, 20)
    counts = Oracle.load(written).forward(ids).counts_LN
    with session(written, vram="200KiB") as local:
        local.logits(ids)
        states = {actor: local.segment.actor_state(actor) for actor in local.executors}
    fired = states["gpu"].up_down_rows + states["cpu"].up_down_rows
    assert fired == pytest.approx(counts.sum(), abs=3)
    assert states["gpu"].gate_rows == states["cpu"].gate_rows == 0
    assert states["predictor"].gate_rows == 20 * counts.size
    with session(written, vram="200KiB", settings={"predictor.by": "executors"}) as local:
        local.logits(ids)
        states = {actor: local.segment.actor_state(actor) for actor in local.executors}
    assert states["gpu"].gate_rows + states["cpu"].gate_rows == 20 * counts.size
    assert states["predictor"].gate_rows == states["predictor"].passes == 0


def test_selective_skips_where_no_cold_neuron_fires(written: Path) -> None:
    """All but one neuron of each layer on the GPU: most tokens need no exchange."""

    class AlmostAll:
        def place(self, problem: Any) -> Any:
            score = np.ones(problem.shape)
            placement = problem.fill(score)
            device_LN = np.zeros(problem.shape, np.int8)
            device_LN[:, 7] = 1
            return type(placement)(device_LN, placement.modules)

    ids = ids_of(written, 30)
    expected = Oracle.load(written).forward(ids)
    for schedule, skips in [("selective", True), ("paper", False)]:
        with session(
            written, policy=AlmostAll(), schedule=schedule, vram="1GiB", max_batch=1
        ) as local:
            logits, _ = local.logits(ids)
            skipped = local.segment.actor_state("gpu").skipped_exchanges
        silent = int((expected.gates_LTN[:-1, :, 7] <= 0).sum())
        assert skipped == (silent if skips else 0)
        np.testing.assert_allclose(logits, expected.logits_TV, atol=1e-3, rtol=0)


def test_sampling_is_a_function_of_seed_and_position(written: Path) -> None:
    ids = ids_of(written, 5)
    hot = Sampling(max_tokens=12, temperature=1.5, top_k=40, top_p=0.95, seed=7, ignore_eos=True)
    with session(written) as local:
        first = list(local.sample(ids, hot))
        list(local.sample(ids, Sampling(max_tokens=3)))
        again = list(local.sample(ids, hot))
        resumed = list(local.sample([*ids, *(id_ for id_, _ in first[:4])], hot))
    assert first == again
    assert [id_ for id_, _ in resumed[:8]] == [id_ for id_, _ in first[4:]]


def test_generation_ends_at_the_context_and_at_eos(written: Path) -> None:
    ids = ids_of(written, 60)
    with session(written) as local:
        tokens = list(local.sample(ids, Sampling(max_tokens=50, ignore_eos=True)))
        assert len(tokens) == 64 - 60 + 1
        eos = tokens[2][0]
        local.text.eos_ids = (eos,)
        ended = [id_ for id_, _ in local.sample(ids, Sampling(max_tokens=50))]
    assert ended == [id_ for id_, _ in tokens[: ended.index(eos) + 1]]


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no tokens"), ([5] * 65, "context holds 64"), ([301], "vocabulary of 301")],
)
def test_prompts_that_cannot_be_used(written: Path, ids: list[int], message: str) -> None:
    with session(written) as local:
        with pytest.raises(ConfigError, match=message):
            local.logits(ids)
        assert len(list(local.sample([5], Sampling(max_tokens=3, ignore_eos=True)))) == 3


def test_profile_counts_are_the_oracles(written: Path) -> None:
    ids = ids_of(written, 60)
    oracle = Oracle.load(written).forward(ids)
    prepared = prepare_model(EngineConfig(model=written))
    fired_LN = np.zeros(prepared.problem.shape, np.int64)
    with LocalSession(deploy(prepared, solve(prepared)), fired_LN) as local:
        local.logits(ids)
    unclear_LN = (np.abs(oracle.gates_LTN) < 1e-5).sum(axis=1)
    assert (np.abs(fired_LN - oracle.counts_LN) <= unclear_LN).all()
    assert fired_LN.sum() > 0


def test_spans_record_every_step(written: Path) -> None:
    from hotcold.runtime.tracing.spans import read

    with session(written) as local:
        local.logits(ids_of(written, 40))
        steps = {actor: len(program) for actor, program in local.deployment.programs.items()}
        spans = {actor: read(local.segment, actor) for actor in steps}
    for actor, count in steps.items():
        assert len(spans[actor]) == 2 * count  # two passes of at most 32 tokens


def test_close_frees_threads(written: Path) -> None:
    import threading

    before = threading.active_count()
    run: Callable[[], LocalSession] = lambda: session(written)  # noqa: E731
    for _ in range(3):
        run().close()
    assert threading.active_count() == before


def test_a_generation_left_early_makes_room_for_the_next(written: Path) -> None:
    ids, sampling = ids_of(written, 10), Sampling(max_tokens=20, ignore_eos=True)
    with session(written) as local:
        whole = [id_ for id_, _ in local.sample(ids, sampling)]
        for _ in range(20):
            stream = local.sample(ids, sampling)
            assert next(stream)[0] == whole[0]
            stream.close()
        assert [id_ for id_, _ in local.sample(ids, sampling)] == whole


def test_a_closed_session_says_so(written: Path) -> None:
    with session(written) as local:
        pass
    with pytest.raises(KernelError, match="closed"):
        list(local.sample([1, 2, 3], Sampling(max_tokens=2)))
