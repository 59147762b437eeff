"""Several prompts in one call: each has the tokens of its run alone, whatever happens meanwhile."""

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray

from hotcold.actors import Completion, Engine
from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import Sampling

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]
PROMPTS: list[Any] = [
    "Once upon a time",
    {"prompt": "The sea was", "max_tokens": 7, "temperature": 0.9, "seed": 11, "logprobs": 3},
    [1, 50, 60, 70],
    {"prompt": "The king", "stop": [".", "!"], "max_tokens": 90},
    {"prompt": "A very long way " * 20, "temperature": 0.8, "top_p": 0.9},
    {"prompt": "Once", "max_tokens": 1, "ignore_eos": False},
]
FIELDS: dict[str, Any] = {"max_tokens": 30, "seed": 5, "ignore_eos": True}


def alone(engine: Engine, given: Any) -> Any:
    fields = dict(given) if isinstance(given, dict) else {"prompt": given}
    tokens = list(engine.generate(fields.pop("prompt"), **{**FIELDS, **fields}))
    assert engine.last is not None
    text = "".join(token.text for token in tokens)
    top = [token.top for token in tokens]
    assert {len(others) for others in top} == {fields.get("logprobs", 0)}
    return text, [token.id for token in tokens], engine.last.finish, top


def by_index(results: list[Completion]) -> Any:
    assert sorted(one.index for one in results) == list(range(len(results)))
    ordered = sorted(results, key=lambda one: one.index)
    return [
        (one.text, one.token_ids, one.finish_reason, [token.top for token in one.tokens])
        for one in ordered
    ]


@pytest.mark.parametrize(("sequences", "transport"), [(4, "native"), (1, "native"), (1, "ray")])
def test_each_as_alone_launched_and_connected(sequences: int, transport: str) -> None:
    name = f"many-{transport}-{sequences}"
    with Engine.launch(transport=transport, sequences=sequences, name=name) as engine:
        assert engine.sequences == sequences
        expected = [alone(engine, given) for given in PROMPTS]
        results = list(engine.generate_many(PROMPTS, **FIELDS))
        assert by_index(results) == expected
        assert expected[3][2] == "stop"
        for one in results:
            assert one.stats.new_tokens == len(one.token_ids)
            assert one.stats.prompt_tokens > 0 and one.stats.begin_ns > 0
        assert engine.last in [one.stats for one in results]
        connected, sampling = Engine.connect(engine.name), Sampling(**FIELDS)
        results = list(connected.generate_many(iter(PROMPTS), sampling))
        assert by_index(results) == expected
        assert list(connected.generate_many([])) == []
        if transport == "ray":
            with closing(engine.generate("The sea")) as held:
                next(held)
                with pytest.raises(ConfigError, match="a generation is running"):
                    next(engine.generate("The king"))


def test_a_bad_prompt_is_refused_before_any_starts(tiny_model: Path) -> None:
    with Engine.launch(model=tiny_model) as engine:
        for prompts, said in [
            ([[1], []], "prompt 1: the prompt has no tokens"),
            ([[1], [2, 300]], "prompt 1: token id 300 is outside"),
            ([[1], [2], [3] * 97], "prompt 2: the prompt has 97 tokens, the context holds 96"),
            ([[1], {"prompt": [1], "top_p": 0}], "prompt 1: top_p 0 is not a number in"),
            ([1, 2], "prompt 0: the prompt 1 is neither one text nor token ids"),
        ]:
            with pytest.raises(ConfigError) as caught:
                engine.generate_many(prompts)
            assert said in str(caught.value)
        with pytest.raises(ConfigError, match="unknown option 'max_token'"):
            engine.generate_many([[1]], max_token=3)
        assert engine.stats().actors["gpu"].passes == 0


def test_a_late_cancel_ends_no_other_request() -> None:
    with Engine.launch(sequences=2) as engine:
        expected = [alone(engine, given) for given in PROMPTS]
        source = engine.generate_many(PROMPTS, **FIELDS)
        results = [next(source)]
        ray.get([engine.actors["gpu"].cancel.remote(id_) for id_ in range(100)])
        assert by_index([*results, *source]) == expected


def test_leaving_early_frees_the_engine() -> None:
    with Engine.launch(context=1024, sequences=2) as engine:
        prompts = [{"prompt": "Once", "max_tokens": 3}, "Once upon", "Once upon a time"]
        source = engine.generate_many(prompts, max_tokens=1000, ignore_eos=True)
        assert next(source).index == 0
        assert len(list(engine.generate("The sea", max_tokens=4))) == 4, "beside the others"
        source.close()
        passes = engine.stats().actors["gpu"].passes
        assert len(list(engine.generate("The sea", max_tokens=4))) == 4
        assert engine.stats().actors["gpu"].passes < passes + 20


@pytest.mark.parametrize(
    ("victim", "sequences"), [("gpu", 3), ("gpu", 1), ("cpu", 3), ("predictor", 3)]
)
def test_a_killed_actor_changes_no_tokens(victim: str, sequences: int) -> None:
    prompts = PROMPTS * 2
    with Engine.launch(sequences=sequences) as engine:
        expected = [alone(engine, given) for given in PROMPTS] * 2
        results = []
        for one in engine.generate_many(prompts, **FIELDS):
            results.append(one)
            if len(results) == 2:
                os.kill(engine.pids[victim], signal.SIGKILL)
        assert by_index(results) == expected
        assert [recovery.actor for recovery in engine.recoveries] == [victim]


def test_after_a_loss_no_sequence_computes_its_prompt_again() -> None:
    prompts = [f"{word} had a very long way to go. " * 9 for word in ("He", "She", "They")]
    fields: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 0.9}
    with Engine.launch(sequences=3) as engine:
        expected = [[token.id for token in engine.generate(each, **fields)] for each in prompts]
        streams = [engine.generate(each, **fields) for each in prompts]
        got = [[next(stream).id] for stream in streams]
        os.kill(engine.pids["gpu"], signal.SIGKILL)
        for ids, stream in zip(got, streams, strict=True):
            ids += [token.id for token in stream]
        assert got == expected
        state, [recovery] = engine.stats().actors["gpu"], engine.recoveries
        assert recovery.actor == "gpu"
        assert state.prompt_tokens > 3 * 70
        assert state.prompt_tokens - state.reused_tokens <= 3, "the last token of each alone"


def test_a_new_plan_changes_no_tokens() -> None:
    with Engine.launch(predictor="exact", sequences=3) as engine:
        expected = [alone(engine, given) for given in PROMPTS]
        results = []
        for one in engine.generate_many(PROMPTS, **FIELDS):
            results.append(one)
            if len(results) == 1:
                engine.replan(policy="random")
        assert by_index(results) == expected
