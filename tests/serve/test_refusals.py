"""What a server refuses, and how it says so; on an engine that only counts."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.counting import Counting
from support.http import JSON, ask, begin, serving

from hotcold.actors.serve.app import create_app
from hotcold.actors.serve.service import Service
from hotcold.actors.serve.settings import ServeConfig

MODEL = "hotcold"
BODY: dict[str, Any] = {"model": MODEL, "prompt": "Once", "max_tokens": 3}
KEY = "0123456789abcdef-a-key"


@pytest.fixture(scope="module")
def engine() -> Counting:
    return Counting()


@contextmanager
def served(
    engine: Counting, key: str | None = None, **fields: Any
) -> Iterator[tuple[int, Service]]:
    fields = {"max_tokens_limit": 500, "max_body": "64KiB", "queue": 1, **fields}
    app = create_app(engine, ServeConfig(**fields), key=key, template=engine.template)
    with serving(app) as port:
        yield port, app.state.service


@pytest.fixture(scope="module")
def port(engine: Counting) -> Iterator[int]:
    with served(engine) as (port, _):
        yield port


BAD: list[tuple[Any, str | None]] = [
    (b"{", None),
    (b"[" * 5000, None),
    (b"\xff\xfe", None),
    ([], None),
    ({}, "model"),
    ({"model": MODEL}, "prompt"),
    ({"model": 5, "prompt": "x"}, "model"),
    ({"model": MODEL, "prompt": ""}, "prompt"),
    ({"model": MODEL, "prompt": []}, None),
    ({"model": MODEL, "prompt": [[]]}, None),
    ({"model": MODEL, "prompt": [-1]}, None),
    ({"model": MODEL, "prompt": [1 << 70]}, None),
    ({"model": MODEL, "prompt": [8192]}, "prompt"),
    ({"model": MODEL, "prompt": "\ud800"}, "prompt"),
    ({"model": MODEL, "prompt": "x", "max_tokens": -1}, "max_tokens"),
    ({"model": MODEL, "prompt": "x", "max_tokens": 501}, "max_tokens"),
    ({"model": MODEL, "prompt": "x", "max_tokens": 1.5}, "max_tokens"),
    ({"model": MODEL, "prompt": "x", "n": 0}, "n"),
    ({"model": MODEL, "prompt": "x", "n": 100}, "n"),
    ({"model": MODEL, "prompt": "x", "temperature": -1}, "temperature"),
    (b'{"model": "hotcold", "prompt": "x", "temperature": NaN}', "temperature"),
    (b'{"model": "hotcold", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", None),
    ({"model": MODEL, "prompt": "x", "top_p": 0}, "top_p"),
    ({"model": MODEL, "prompt": "x", "stop": ["a"] * 5}, None),
    ({"model": MODEL, "prompt": "x", "stop": ""}, None),
    ({"model": MODEL, "prompt": "x", "echo": True}, "echo"),
    ({"model": MODEL, "prompt": "x", "logprobs": 6}, "logprobs"),
    ({"model": MODEL, "prompt": "x", "stream": "yes"}, "stream"),
    ({"model": MODEL, "prompt": "x", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"model": MODEL, "prompt": "x", "max_token": 3}, "max_token"),
    ({"model": MODEL, "prompt": "x", "presence_penalty": 0.5}, "presence_penalty"),
    ({"model": MODEL, "prompt": "x", "logit_bias": {"5": 1}}, "logit_bias"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=[str(body)[:50] for body, _ in BAD])
def test_a_bad_body_is_400_and_says_where(port: int, body: Any, param: str | None) -> None:
    answer = ask(port, "POST", "/v1/completions", body)
    assert answer.status == 400
    error = answer.error
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


def test_other_refusals(port: int) -> None:
    assert ask(port, "GET", "/v1/nothing").error["type"] == "not_found_error"
    wrong = ask(port, "GET", "/v1/completions")
    assert wrong.status == 405 and wrong.headers["allow"] == "POST" and wrong.error
    unknown = {"model": "x\ud800", "prompt": "x"}
    assert ask(port, "POST", "/v1/completions", unknown).status == 404
    plain = ask(port, "POST", "/v1/completions", "{}", {"Content-Type": "text/plain"})
    assert plain.status == 415 and plain.error
    large = {"model": MODEL, "prompt": "x" * 70000}
    assert ask(port, "POST", "/v1/completions", large).status == 413
    pieces = iter([b"x" * 40000, b"x" * 40000])
    assert ask(port, "POST", "/v1/completions", pieces).status == 413  # by what came
    tools = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "tools": [{}]}
    assert ask(port, "POST", "/v1/chat/completions", tools).error["param"] == "tools"
    many = {"model": MODEL, "messages": tools["messages"], "logprobs": True, "top_logprobs": 21}
    assert ask(port, "POST", "/v1/chat/completions", many).error["param"] == "top_logprobs"
    del many["logprobs"]
    many["top_logprobs"] = 5
    assert ask(port, "POST", "/v1/chat/completions", many).error["param"] == "top_logprobs"
    other = ask(port, "GET", "/health", headers={"Host": "example.org"})
    assert other.status == 403 and other.error


def test_health_headers_and_description(port: int) -> None:
    for path in ("/health", "/ready", "/v1/models", "/openapi.json"):
        answer = ask(port, "GET", path)
        assert answer.status == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
    described = ask(port, "GET", "/openapi.json").json
    posts = [path["post"]["responses"] for path in described["paths"].values() if "post" in path]
    assert len(posts) == 3
    assert all("400" in responses and "422" not in responses for responses in posts)


def test_a_full_queue_is_429_and_says_when_to_come_again(engine: Counting) -> None:
    with served(engine) as (port, service):
        long = {**BODY, "max_tokens": 400}
        held = [begin(port, "POST", "/v1/completions", long) for _ in range(3)]
        while (service.admission.running, service.admission.waiting) != (2, 1):
            time.sleep(0.005)
        full = ask(port, "POST", "/v1/completions", BODY)
        assert full.status == 429 and full.error["code"] == "queue_full"
        assert 1 <= int(full.headers["retry-after"]) <= 600
        held.pop().close()  # the one that waits; its place is free
        while service.admission.waiting:
            time.sleep(0.005)
        for connection in held:
            connection.close()
        assert ask(port, "POST", "/v1/completions", BODY).status == 200
        assert engine.running == 0
        mean_s = sum(service.admission._taken_s) / len(service.admission._taken_s)
        assert service.admission.wait_s() == 1 > mean_s / 2
        service.admission._taken_s.extend([50.0] * 64)
        assert service.admission.wait_s() == 25  # two slots


def test_several_generations_of_one_request_take_a_place_each(engine: Counting) -> None:
    with served(engine) as (port, service):
        assert ask(port, "POST", "/v1/completions", {**BODY, "n": 4}).error["param"] == "n"
        three = ask(port, "POST", "/v1/completions", {**BODY, "n": 3})
        assert [choice["text"] for choice in three.json["choices"]] == [" 0 1 2"] * 3
        assert (service.admission.running, service.admission.waiting) == (0, 0)


def test_time_is_up(engine: Counting) -> None:
    with served(engine, request_timeout=0.2) as (port, _):
        long = {**BODY, "max_tokens": 400}
        assert ask(port, "POST", "/v1/completions", long).error["type"] == "timeout_error"
        streamed = ask(port, "POST", "/v1/completions", {**long, "stream": True})
        assert streamed.status == 200 and b"[DONE]" not in streamed.body
        assert b"timeout_error" in streamed.body.splitlines()[-2]
        assert engine.running == 0


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_lost_for_good_is_503(engine: Counting, at: int, stream: bool) -> None:
    engine.fails_at = at
    try:
        with served(engine) as (port, _):
            answer = ask(port, "POST", "/v1/completions", {**BODY, "stream": stream, "n": 2})
    finally:
        engine.fails_at = -1
    if at and stream:  # it has begun
        assert answer.status == 200 and b"engine_lost" in answer.body
    else:
        assert answer.status == 503 and answer.error["code"] == "engine_lost"
    assert b"secret" not in answer.body
    assert engine.running == 0


def test_the_key(engine: Counting) -> None:
    def status(path: str, *words: str) -> int:
        headers = {**JSON, "Authorization": " ".join(words)} if words else JSON
        return ask(port, "GET", path, headers=headers).status

    with served(engine, key=KEY) as (port, _):
        assert [status(path) for path in ("/health", "/ready")] == [200, 200]
        for path in ("/v1/models", "/openapi.json", "/v1/nothing"):
            assert status(path) == status(path, "Bearer", KEY[:-1]) == 401
        assert status("/v1/models", "Basic", KEY) == status("/v1/models", KEY) == 401
        assert status("/v1/models", "Bearer", KEY) == status("/v1/models", "bearer", KEY) == 200
        wrong = ask(port, "POST", "/v1/completions", BODY)
        assert wrong.error["code"] == "invalid_api_key"
        assert wrong.headers["www-authenticate"] == "Bearer" and KEY.encode() not in wrong.body
        assert ask(port, "GET", "/health", headers={"Host": "example.org"}).status == 200


def test_pages_of_others_may_call_only_if_asked(engine: Counting) -> None:
    origin = "https://pages.example"
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    with served(engine, cors_origin=(origin,)) as (port, _):
        for headers in (asks, {"Origin": origin}):
            method = "OPTIONS" if headers is asks else "GET"
            answer = ask(port, method, "/v1/models", headers=headers)
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == origin
        other = ask(port, "GET", "/v1/models", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_draining(engine: Counting) -> None:
    with served(engine) as (port, service):
        service.draining = True
        for method, path, body in [("GET", "/ready", None), ("POST", "/v1/completions", BODY)]:
            answer = ask(port, method, path, body)
            assert answer.status == 503 and int(answer.headers["retry-after"]) > 0 and answer.error
        assert ask(port, "GET", "/health").status == 200


def test_prompts_and_keys_are_not_logged(
    engine: Counting, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with served(engine, key=KEY) as (port, _):
        allowed = {**JSON, "Authorization": f"Bearer {KEY}"}
        for body in ({**BODY, "prompt": "a private </s> word"}, {**BODY, "promt": "private"}):
            ask(port, "POST", "/v1/completions", body, allowed)
    said = caplog.text + "".join(capfd.readouterr())
    assert "private" not in said and KEY not in said


def test_without_a_template_a_chat_is_refused(engine: Counting) -> None:
    app = create_app(engine, ServeConfig())
    with serving(app) as port:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        refused = ask(port, "POST", "/v1/chat/completions", body)
    assert refused.error["code"] == "no_chat_template"
