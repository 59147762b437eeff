"""What a request finds of its prompt in the KV cache, and who gets rows and slots.

That the bits are those of a run from scratch is test_sequences.py's.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import TinyLlama, write_llama

from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.executors.leading import run_through
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.kv import KvCache
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling

CONTEXT = 96
GREEDY = Sampling(ignore_eos=True)
SYSTEM = list(range(3, 43))
OTHER = list(range(200, 240))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_llama(folder, TinyLlama(d=35, heads=5, kv_heads=1, head_dim=6, context=512))
    return folder


def session(model: Path, **options: Any) -> LocalSession:
    chosen = {"model": model, "context": CONTEXT, "threads": 1, "predictor": "exact", **options}
    prepared = prepare_model(EngineConfig(**chosen))
    return LocalSession(deploy(prepared, solve(prepared)))


class Asked:
    """Runs requests of a session one after the other."""

    def __init__(self, local: LocalSession) -> None:
        self.local, self.ids = local, 0

    def request(self, prompt: Sequence[int], new: int = 1, **more: Any) -> Request:
        self.ids += 1
        return Request(self.ids, np.array(prompt, np.int32), GREEDY, max_tokens=new, **more)

    def run(self, prompt: Sequence[int], new: int = 1, **more: Any) -> RequestTimes:
        return run_through(self.local.leader.generate(self.request(prompt, new, **more)))

    def reused(self, prompt: Sequence[int], new: int = 1, **more: Any) -> int:
        return self.run(prompt, new, **more).reused


def test_what_was_computed_before_is_found(model: Path) -> None:
    with session(model) as local:
        asked = Asked(local)
        assert asked.reused(SYSTEM, new=8) == 0
        assert asked.reused(SYSTEM) == 39, "the last one's logits are wanted"
        answer = [id_ for id_, _ in local.sample(SYSTEM, Sampling(8, ignore_eos=True))]
        times = asked.run([*SYSTEM, *answer, 50, 51])
        assert (times.reused, times.passes) == (47, 1), "nobody fed the last token back"
        assert asked.reused([*SYSTEM[:20], 60]) == 20
        assert asked.reused(OTHER) == 0
        assert asked.reused(SYSTEM) == 0, "the only slot has been used for something else"
        state = local.segment.actor_state("gpu")
        assert (state.prompt_tokens, state.reused_tokens) == (271, 145)
    with session(model, prefix_cache=False) as local:
        assert [Asked(local).reused(SYSTEM) for _ in range(2)] == [0, 0]


def test_another_slot_is_copied_where_its_own_would_be_lost(model: Path) -> None:
    with session(model, sequences=3) as local:
        asked = Asked(local)
        long = [*SYSTEM, *OTHER]
        asked.run(long)
        assert asked.reused([*SYSTEM, 50]) == 40, "copied to a slot that nobody has used"
        assert asked.reused(long) == 79, "so that one is whole"
        with closing(local.sample([*OTHER, 7], Sampling(50, ignore_eos=True))) as held:
            next(held)
            assert asked.reused([*OTHER, 7, 8]) == 41, "copied while the other goes on"
            assert len(list(held)) == 49


def test_the_slot_unused_for_longest_is_taken(model: Path) -> None:
    with session(model, sequences=2) as local:
        asked = Asked(local)
        for prompt, found in [(SYSTEM, 0), (OTHER, 0), (SYSTEM, 39), ([90, 91], 0)]:
            assert asked.reused(prompt) == found
        assert (asked.reused(SYSTEM), asked.reused(OTHER)) == (39, 0)
        short = [SYSTEM[0], 50, 51, 52]
        for prompt, found in [(SYSTEM, 39), (short, 1), ([SYSTEM[0], 90], 1), (short, 3)]:
            assert asked.reused(prompt) == found, "the shorter one is newer"


def test_every_position_is_computed_where_it_is_wanted(model: Path) -> None:
    with session(model) as local:
        first, second = (local.logits(SYSTEM)[0] for _ in range(2))
        assert np.array_equal(first, second)
        assert Asked(local).reused(SYSTEM) == 39
        assert local.segment.actor_state("gpu").reused_tokens == 39
    prepared = prepare_model(EngineConfig(model=model, context=CONTEXT, predictor="exact"))
    fired_LN = np.zeros(prepared.problem.shape, np.int64)
    with LocalSession(deploy(prepared, solve(prepared)), fired_LN) as local:
        assert [Asked(local).reused(SYSTEM) for _ in range(2)] == [0, 0]


def test_rows_outlive_who_wrote_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new plan's requests compute their prompts; one that goes on takes what there is."""
    with session(model) as local:
        shape = local.leader.bundle.spec, CONTEXT, 1
    kv = KvCache.create(*shape)
    monkeypatch.setattr(KvCache, "private", lambda *shape: KvCache.attach(kv.handle, *shape))
    try:
        with session(model) as local:
            Asked(local).run(SYSTEM)
        with session(model) as local:
            assert Asked(local).reused(SYSTEM) == 39
        kv.plan += 1
        with session(model, policy="random") as local:
            asked = Asked(local)
            assert asked.reused([*SYSTEM, 50], n_given=40) == 40
            assert asked.reused([*SYSTEM, 50, 51]) == 0, "some are the other plan's"
            assert asked.reused([*SYSTEM, 50, 51]) == 41
        assert kv.marks["n"].tolist() == [42]
        assert kv.tokens[0, :42].tolist() == [*SYSTEM, 50, 51]
    finally:
        kv.close()


def test_a_short_prompt_passes_a_long_one(model: Path) -> None:
    with session(model, sequences=2, max_batch=8, context=512) as local:
        native, asked = local.leader.native, Asked(local)
        long, short = asked.request(OTHER * 12), asked.request(SYSTEM[:12])
        native.post(long)
        native.post(short)
        while not native.tokens(short.id, 0, 1000, limit=8)[1]:
            pass
        assert native.request_times(short.id).passes in (2, 3)  # of 8 rows, if it came late, or 4
        assert len(native.tokens(long.id, 0, 0)[0]) == 0
        for request in (long, short):
            native.release(request.id)


def test_a_prompt_takes_no_more_rows_than_it_may(model: Path) -> None:
    with session(model, sequences=2, prompt_piece=4, context=512) as local:
        native, asked = local.leader.native, Asked(local)
        assert asked.run(SYSTEM).passes == 2, "nobody decodes"
        native.post(asked.request([7], new=400))
        # 32 rows, then 4 and 4, if both begin at once
        assert asked.run(OTHER).passes in range(4, 11)


def test_a_cancelled_request_frees_its_slot_or_never_runs(model: Path) -> None:
    with session(model, max_batch=1, context=512) as local:
        native, asked = local.leader.native, Asked(local)
        long = asked.request(OTHER * 12)
        native.post(long)
        while not local.segment.actor_state("gpu").passes:
            pass
        local.leader.cancel(long.id)
        assert native.tokens(long.id, 0, 5000)[1]
        assert native.request_times(long.id).passes < 400
        late = asked.request(OTHER, new=5)
        local.leader.cancel(late.id)  # it overtook the request
        assert run_through(local.leader.generate(late)).passes <= 1
        assert asked.run(SYSTEM).passes == 40


def test_alternatives_come_with_their_tokens(model: Path) -> None:
    sampling = Sampling(6, temperature=1.0, seed=3, logprobs=4, ignore_eos=True)
    with session(model) as local:
        tokens = list(local.generate(SYSTEM, sampling))
        logits = local.logits([*SYSTEM, *(token.id for token in tokens)])[0][39:-1]
        rows = logits.astype(np.float64)
        logprobs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for token, row in zip(tokens, logprobs, strict=True):
            assert [id_ for id_, _ in token.top] == np.argsort(-row, kind="stable")[:4].tolist()
            np.testing.assert_allclose([p for _, p in token.top], np.sort(row)[:-5:-1], atol=1e-5)
            assert token.logprob == pytest.approx(row[token.id], abs=1e-5)
