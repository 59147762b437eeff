"""Several requests in one session: each gets the tokens it gets alone, whoever is beside it.

Every case is a drawn mix: prompts with common beginnings, settings, times of arrival and
cancellation, rows of a pass, sequences at once; then the next turns of some of them. Compared are
tokens and log probabilities, to the bit, and a prompt's logits, with a session that computes every
prompt from scratch. HOTCOLD_MIXES=23 makes more than 200 mixes of a few.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.models import TinyLlama, write_llama
from support.opt_models import TinyOpt, write_opt
from support.tiny_models import FALCON

from hotcold.native.bindings.executor import Request
from hotcold.native.errors import ConfigError
from hotcold.policies.predictor.window import Window
from hotcold.runtime.engine.deployment import deploy, load_plan, solve
from hotcold.runtime.engine.executors.session import LocalSession
from hotcold.runtime.engine.kv import KvCache
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.options.config import EngineConfig, Sampling

CONTEXT = 64
MODELS: dict[str, Callable[[Path], Any]] = {
    "llama": lambda folder: write_llama(folder, TinyLlama(d=35, heads=5, kv_heads=1, head_dim=6)),
    "opt": lambda folder: write_opt(folder, TinyOpt()),
    "falcon": FALCON["40b"].write,
}
PREDICTORS: dict[str, dict[str, Any]] = {
    "exact": {"predictor": "exact"},
    "low-rank": {"predictor": "low-rank", "settings": {"predictor.rank": "6"}},
    "none": {"predictor": "exact", "settings": {"predictor.by": "executors"}},
}
PAIRS = [(model, predictor) for model in MODELS for predictor in PREDICTORS]
REMEMBERS = {"predictor": Window(k=2, probe_every=4, recall=0)}
MIXES = int(os.environ.get("HOTCOLD_MIXES", "3"))
STEMS = np.random.default_rng(7).integers(3, 300, (2, 40))  # that prompts begin with
Drawn = list[tuple[int, float]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, write in MODELS.items():
        write(root / name)
    return {name: root / name for name in MODELS}


def session(model: Path, **options: Any) -> LocalSession:
    prepared = prepare_model(EngineConfig(model=model, context=CONTEXT, threads=1, **options))
    return LocalSession(deploy(prepared, solve(prepared)))


@dataclass(frozen=True)
class Ask:
    """sampling None: the logits of the prompt are asked for; taken: tokens until it is given up."""

    prompt: tuple[int, ...]
    sampling: Sampling | None
    arrives_s: float
    taken: int | None

    @classmethod
    def drawn(cls, random: np.random.Generator, late_s: float) -> "Ask":
        length = int(random.choice([1, 2, 5, 17, 33, 50]))
        prompt = random.integers(3, 300, length)
        if random.random() < 0.6:
            known = min(length, int(random.integers(len(STEMS[0]) + 1)))
            prompt[:known] = STEMS[random.integers(len(STEMS))][:known]
        return cls.of(tuple(prompt.tolist()), random, late_s)

    @classmethod
    def of(cls, prompt: tuple[int, ...], random: np.random.Generator, late_s: float) -> "Ask":
        length = len(prompt)
        sampling = Sampling(
            max_tokens=int(random.integers(1, CONTEXT - length + 1)),
            temperature=float(random.choice([0.0, 0.7, 1.5])),
            top_k=int(random.choice([0, 3, 40])),
            top_p=float(random.choice([1.0, 0.8])),
            seed=int(random.integers(1 << 60)),
            ignore_eos=bool(random.integers(2)),
        )
        taken = int(random.integers(1, 9)) if random.random() < 0.2 else None
        asks_logits = random.random() < 0.1
        arrives_s = float(random.random() * late_s)
        return cls(prompt, None if asks_logits else sampling, arrives_s, taken)

    def next_turn(self, drawn: Any, random: np.random.Generator, late_s: float) -> "Ask":
        answer = [] if self.sampling is None else [id_ for id_, _ in drawn]
        said = random.integers(3, 300, int(random.integers(1, 6))).tolist()
        return self.of((*self.prompt, *answer, *said)[: CONTEXT - 1], random, late_s)

    def run(self, local: LocalSession) -> Drawn | NDArray[np.float32]:
        if self.sampling is None:
            return local.logits(self.prompt)[0]
        found: Drawn = []
        with closing(local.sample(self.prompt, self.sampling)) as tokens:
            for token in tokens:
                found.append(token)
                if len(found) == self.taken:
                    break
        return found


def together(local: LocalSession, asks: list[Ask]) -> dict[Ask, Any]:
    results: dict[Ask, Any] = {}

    def one(ask: Ask) -> None:
        time.sleep(ask.arrives_s)
        try:
            results[ask] = ask.run(local)
        except Exception as error:  # noqa: BLE001 - shown by the comparison
            results[ask] = error

    threads = [threading.Thread(target=one, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "a request hangs"
    return results


def check_mix(model: Path, options: dict[str, Any], alone: LocalSession, seed: int) -> int:
    """How many prompt tokens were not computed."""
    random = np.random.default_rng(seed)
    sequences, rows = (int(random.choice([1, 2, 3, 8, 31, 32])) for _ in range(2))
    late_s = float(random.choice([0.0, 0.03]))
    asks = [Ask.drawn(random, late_s) for _ in range(int(random.integers(2, 13)))]
    with session(model, sequences=sequences, max_batch=rows, **options) as local:
        for turn in range(2):
            results = together(local, asks)
            assert not local.leader.native._requests, "a request was not forgotten"
            for ask in asks:
                where = str((seed, turn, ask))
                np.testing.assert_array_equal(results[ask], ask.run(alone), err_msg=where)
            asks = [ask.next_turn(results[ask], random, late_s) for ask in asks[: 2 + sequences]]
        return local.segment.actor_state("gpu").reused_tokens


@pytest.mark.parametrize(("model", "predictor"), PAIRS)
def test_each_has_the_tokens_it_has_alone(
    models: dict[str, Path], model: str, predictor: str
) -> None:
    options, first = PREDICTORS[predictor], 100 * PAIRS.index((model, predictor))
    with session(models[model], prefix_cache=False, **options) as alone:
        mixes = range(first, first + MIXES)
        reused = [check_mix(models[model], options, alone, seed) for seed in mixes]
        assert sum(reused) > 0
        assert not alone.segment.actor_state("gpu").reused_tokens


def test_what_a_predictor_remembers_is_of_its_sequence(models: dict[str, Path]) -> None:
    with session(models["llama"], **REMEMBERS) as alone:
        for seed in range(1000, 1000 + MIXES):
            assert not check_mix(models["llama"], REMEMBERS, alone, seed)


def test_sequences_share_passes(models: dict[str, Path]) -> None:
    """Eight requests of 30 tokens: far fewer passes than the 240 of one after another."""
    asks = [Ask((3 + i, 4), Sampling(max_tokens=30, ignore_eos=True), 0, None) for i in range(8)]
    with session(models["llama"], predictor="exact", sequences=8) as local:
        together(local, asks)
        passes = local.segment.actor_state("gpu").passes
    assert 30 <= passes < 160


def test_who_finds_no_slot_waits_and_may_give_up(models: dict[str, Path]) -> None:
    sampling = Sampling(max_tokens=CONTEXT, ignore_eos=True)
    long = Ask((3,), sampling, 0, None)
    with session(models["llama"], predictor="exact") as local:
        with closing(local.sample(long.prompt, sampling)) as held:
            first = next(held)  # its slot is taken
            native = local.leader.native
            native.post(Request(1, np.array([5], np.int32), Sampling(), max_tokens=3))
            native.cancel(1)
            times = native.request_times(1)
            assert native.tokens(1, 0, 5000) == (pytest.approx([]), True)
            assert times.passes == 0
            native.release(1)
            results = together(local, [long, Ask((5,), sampling, 0, 1)])
        assert len(results[long]) == CONTEXT
        assert results[long][0] == first


def test_ids_tell_requests(models: dict[str, Path]) -> None:
    prompt = np.array([3, 4, 5], np.int32)
    with session(models["llama"], predictor="exact") as local:
        native = local.leader.native
        native.post(Request(7, prompt, Sampling(), max_tokens=20))
        with pytest.raises(ConfigError, match="request 7 is still there"):
            native.post(Request(7, prompt, Sampling()))
        assert native.tokens(8, 0, 50)[1], "nobody knows 8, so nothing comes"
        while not native.tokens(7, 20, 1000, limit=1)[1]:
            pass
        native.release(7)
        native.post(Request(7, prompt, Sampling()))
        native.release(7)


def test_memory_is_counted_by_sequences(models: dict[str, Path], tmp_path: Path) -> None:
    one, four = (
        prepare_model(EngineConfig(model=models["llama"], predictor="exact", sequences=count))
        for count in (1, 4)
    )
    sizes = [
        [module.bytes for module in made.problem.modules if module.kind == "kv"]
        for made in (one, four)
    ]
    assert sizes[1] == [4 * size for size in sizes[0]]
    kv = KvCache.private(four.bundle.spec, 16, 4)
    assert kv.keys.shape == (2, 4, 1, 16, 6)
    assert kv.keys.nbytes * 2 * four.context == 16 * sum(sizes[1])
    solve(one).save(tmp_path)
    with pytest.raises(ConfigError, match="a KV cache of 1 sequences, fewer than the 4 asked for"):
        load_plan(four, tmp_path)


def test_what_cannot_serve_several_says_so() -> None:
    with pytest.raises(ConfigError, match="the ray transport runs one"):
        EngineConfig(sequences=2, transport="ray")
    with pytest.raises(ConfigError, match="sequences 33 is not a whole number in 1..32"):
        EngineConfig(sequences=33)
