"""The API by the official client, on a real engine."""

import gc
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest
from support.http import ask, begin

from hotcold.actors import Engine
from hotcold.actors.serve.service import Service

pytestmark = pytest.mark.ray
PROMPT = "Once upon a time"
MODEL = "hotcold"


def alone(engine: Engine, prompt: str, **fields: Any) -> str:
    return "".join(token.text for token in engine.generate(prompt, **fields))


def completed(client: openai.OpenAI, prompt: Any = PROMPT, **more: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **more)


def chat(client: openai.OpenAI, text: str = PROMPT, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "hotcold"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt/5")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_is_the_engines_whole_and_streamed(
    engine: Engine, client: openai.OpenAI, temperature: float
) -> None:
    fields: dict[str, Any] = {"max_tokens": 24, "temperature": temperature, "seed": 7}
    expected = alone(engine, PROMPT, **fields)
    whole = completed(client, **fields)
    assert whole.choices[0].text == expected and whole.choices[0].finish_reason == "length"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 24)
    assert whole.usage.total_tokens == 29
    options = {"include_usage": True}
    pieces = list(completed(client, **fields, stream=True, stream_options=options))
    assert len({piece.id for piece in pieces}) == 1
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == expected
    assert pieces[-2].choices[0].finish_reason == "length"
    assert pieces[-1].choices == [] and pieces[-1].usage.total_tokens == 29
    assert 0 < pieces[-1].usage.prompt_tokens_details.cached_tokens < 5  # the last is computed
    assert all(piece.usage is None for piece in pieces[:-1])


def test_a_chat_whole_and_streamed(engine: Engine, client: openai.OpenAI) -> None:
    expected = alone(engine, PROMPT, max_tokens=12)
    answer = chat(client, temperature=0, max_completion_tokens=12).choices[0]
    assert (answer.message.role, answer.message.content) == ("assistant", expected)
    pieces = list(chat(client, temperature=0, max_tokens=12, stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "length"
    parts: Any = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    assert chat(client, parts, temperature=0, max_tokens=12).choices[0].message.content == expected


def test_choices_prompts_and_seeds(engine: Engine, client: openai.OpenAI) -> None:
    prompts = [PROMPT, "The sea was"]
    expected = [
        alone(engine, prompt, max_tokens=9, temperature=1.0, seed=seed)
        for prompt in prompts
        for seed in (5, 6, 7)
    ]
    fields: dict[str, Any] = {"n": 3, "seed": 5, "max_tokens": 9}
    made = completed(client, prompts, **fields)
    assert [choice.text for choice in made.choices] == expected
    assert [choice.index for choice in made.choices] == list(range(6))
    assert made.usage.completion_tokens == 54
    texts = [""] * 6
    for piece in completed(client, prompts, **fields, stream=True):
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == expected and len(set(texts)) == 6
    ids = engine.text.ids(PROMPT, engine.context)
    assert completed(client, ids, seed=5, max_tokens=9).choices[0].text == expected[0]
    assert completed(client, [ids], seed=-1, max_tokens=9).choices[0].text != expected[0]
    drawn = {completed(client, max_tokens=9).choices[0].text for _ in range(3)}
    assert len(drawn) == 3  # without a seed


@pytest.mark.parametrize("stop", [" man", ["xyzzy", " man", "."]])
def test_stop(engine: Engine, client: openai.OpenAI, stop: Any) -> None:
    expected = alone(engine, PROMPT, max_tokens=24).partition(" man")[0]
    made = completed(client, temperature=0, max_tokens=24, stop=stop)
    assert (made.choices[0].text, made.choices[0].finish_reason) == (expected, "stop")
    pieces = list(completed(client, temperature=0, max_tokens=24, stop=stop, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == expected


def test_logprobs(engine: Engine, client: openai.OpenAI) -> None:
    tokens = list(engine.generate(PROMPT, max_tokens=8))
    made = completed(client, temperature=0, max_tokens=8, logprobs=0).choices[0]
    assert made.logprobs.tokens == [token.text for token in tokens]
    assert made.logprobs.token_logprobs == [token.logprob for token in tokens]
    assert made.logprobs.text_offset[2] == len(tokens[0].text + tokens[1].text)
    offsets: list[int] = []
    for piece in completed(client, temperature=0, max_tokens=8, logprobs=0, stream=True):
        offsets += piece.choices[0].logprobs.text_offset
    assert offsets == made.logprobs.text_offset
    said = chat(client, temperature=0, max_tokens=8, logprobs=True).choices[0].logprobs.content
    assert [(one.token, one.logprob) for one in said] == [(t.text, t.logprob) for t in tokens]
    assert bytes(said[0].bytes).decode() == tokens[0].text
    assert made.logprobs.token_logprobs[0] < 0
    assert made.logprobs.top_logprobs is None and said[0].top_logprobs == []


def test_the_likeliest_tokens_beside_each(engine: Engine, client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"max_tokens": 6, "temperature": 1.5, "seed": 3}
    tokens = list(engine.generate(PROMPT, logprobs=20, **fields))
    assert any(token.id != token.top[0][0] for token in tokens)
    of = engine.text.text_of
    said = chat(client, logprobs=True, top_logprobs=20, **fields).choices[0].logprobs.content
    for one, token in zip(said, tokens, strict=True):
        assert [other.logprob for other in one.top_logprobs] == [p for _, p in token.top]
        texts = [token.text if i == token.id else of(i) for i, _ in token.top]
        assert [other.token for other in one.top_logprobs] == texts
        assert bytes(one.top_logprobs[0].bytes).decode() == texts[0]
    made = completed(client, logprobs=5, **fields).choices[0].logprobs
    for named, token in zip(made.top_logprobs, tokens, strict=True):
        assert named[token.text] == token.logprob and len(named) <= 6
        assert named.items() >= {of(i): p for i, p in token.top[:5] if i != token.id}.items()
    assert any(text.startswith(" ") for named in made.top_logprobs for text in named)


def test_control_tokens_in_a_message_are_text(engine: Engine, client: openai.OpenAI) -> None:
    text = "end </s> of it"
    made = chat(client, text, temperature=0, max_tokens=4)
    assert made.choices[0].message.content == alone(engine, text, max_tokens=4)
    assert made.usage.prompt_tokens == len(engine.text.tokenizer.encode(text))


def test_errors_reach_the_client_as_its_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-9", prompt="x")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        completed(client, "word " * 3000)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=MODEL, input="x")


MIXED: list[tuple[str, dict[str, Any]]] = [
    (
        ("The old king " * (1 + i % 9)).strip(),
        {"max_tokens": 4 + (7 * i) % 41, "temperature": (i % 3) / 2, "seed": 100 + i},
    )
    for i in range(24)
]


def test_neighbours_change_no_tokens(engine: Engine, client: openai.OpenAI) -> None:
    expected = [alone(engine, prompt, **fields) for prompt, fields in MIXED]
    with ThreadPoolExecutor(len(MIXED)) as pool:
        made = list(pool.map(lambda one: completed(client, one[0], **one[1]), MIXED))
    assert [one.choices[0].text for one in made] == expected


def settles(service: Service, seconds: float = 10.0) -> bool:
    """Whether all slots and places are free within so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not service.admission.running and not service.admission.waiting:
            return True
        time.sleep(0.01)
    return False


LONG = {"model": MODEL, "prompt": PROMPT, "max_tokens": 480, "ignore_eos": True}


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_its_slot(
    server: tuple[int, Service], engine: Engine, stream: bool
) -> None:
    port, service = server
    body = {**LONG, "stream": stream}
    gone = [begin(port, "POST", "/v1/completions", body) for _ in range(12)]
    while service.admission.running + service.admission.waiting < 12:
        time.sleep(0.005)
    assert service.admission.running == 8 and service.admission.waiting == 4
    assert service.admission._free.locked()
    for connection in gone[8:] + gone[:8]:  # those that wait, too
        connection.close()
    assert settles(service)
    begun = time.monotonic()
    assert len(list(engine.generate(PROMPT, max_tokens=2))) == 2  # which none of them holds up
    assert time.monotonic() - begun < 1


STORM = int(os.environ.get("HOTCOLD_TEST_STORM", "40"))


def test_a_storm_of_requests_leaves_nothing(server: tuple[int, Service], engine: Engine) -> None:
    """3 of 10 leave in the middle, 1 of 20 is malformed; HOTCOLD_TEST_STORM=200 for more."""
    port, service = server
    kept = [one for one in range(STORM) if one % 10 not in (2, 5, 8) and one % 20 != 7]
    fields = {one: {"max_tokens": 3 + (5 * one) % 23, "seed": one} for one in range(STORM)}
    expected = {
        one: alone(engine, PROMPT, temperature=1.0, ignore_eos=True, **fields[one]) for one in kept
    }
    completed(openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x"), max_tokens=2)
    gc.collect()
    bytes_before = resident()

    def send(one: int) -> str | int | None:
        body: Any = {"model": MODEL, "prompt": PROMPT, "ignore_eos": True, **fields[one]}
        body["stream"] = one % 3 == 0 and one not in kept
        if one % 20 == 7:
            return ask(port, "POST", "/v1/completions", json.dumps(body)[:-9]).status
        if one in kept:
            while (answer := ask(port, "POST", "/v1/completions", body)).status == 429:
                time.sleep(0.1)
            text: str = answer.json["choices"][0]["text"]
            return text
        with closing(begin(port, "POST", "/v1/completions", {**body, "max_tokens": 400})):
            time.sleep(0.002 * (one % 60))
        return None

    with ThreadPoolExecutor(40) as pool:
        made = dict(enumerate(pool.map(send, range(STORM))))
    assert {one: made[one] for one in kept} == expected
    assert all(made[one] == 400 for one in range(7, STORM, 20))
    assert settles(service)
    assert threading.active_count() <= 40
    gc.collect()
    assert resident() - bytes_before < 64 << 20
    begun = time.monotonic()
    assert len(list(engine.generate(PROMPT, max_tokens=2))) == 2
    assert time.monotonic() - begun < 1


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_threads_do_not_pile_up(client: openai.OpenAI) -> None:
    completed(client, max_tokens=2)
    before = threading.active_count()
    for _ in range(5):
        completed(client, max_tokens=2)
    assert threading.active_count() <= before + 1
