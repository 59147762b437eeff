"""An engine and a server on it, shared by the tests of the API."""

from collections.abc import Iterator

import openai
import pytest
from support.http import serving

from hotcold.actors import Engine
from hotcold.actors.serve.app import create_app
from hotcold.actors.serve.chat import find_template
from hotcold.actors.serve.service import Service
from hotcold.actors.serve.settings import ServeConfig
from hotcold.runtime.model.checkpoints.bundle import resolve_model


@pytest.fixture(scope="package")
def engine(one_ray: str) -> Iterator[Engine]:
    with Engine.launch(sequences=8, restarts=10) as engine:
        yield engine


@pytest.fixture(scope="package")
def server(engine: Engine) -> Iterator[tuple[int, Service]]:
    template = find_template(resolve_model(None).path, True, None)
    app = create_app(engine, ServeConfig(max_tokens_limit=500, max_body="64KiB"), template=template)
    with serving(app) as port:
        yield port, app.state.service


@pytest.fixture
def client(server: tuple[int, Service]) -> Iterator[openai.OpenAI]:
    port, _ = server
    url = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=url, api_key="none is asked for", max_retries=0) as client:
        yield client
