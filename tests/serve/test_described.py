"""Requests made from the API's own description: whatever is sent, the server never fails."""

import os
from contextlib import suppress
from typing import Any

import pytest
from support.counting import Counting
from support.http import serving

from hotcold.actors.serve.app import create_app
from hotcold.actors.serve.settings import ServeConfig

schemathesis = pytest.importorskip(
    "schemathesis", reason="run by hand: pip install schemathesis; HOTCOLD_TEST_FUZZ=1000 for more"
)
EXAMPLES = int(os.environ.get("HOTCOLD_TEST_FUZZ", "30"))


def test_nothing_that_is_described_or_is_not_makes_it_fail() -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode

    engine = Counting()
    engine.pause_s = 0.0
    app = create_app(engine, ServeConfig(max_tokens_limit=8), template=engine.template)
    statuses: dict[str, set[int]] = {}

    def check(operation: Any, mode: Any) -> None:
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = "hotcold"
            answer = case.call_and_validate(checks=[not_a_server_error])
            statuses.setdefault(operation.label, set()).add(answer.status_code)

        with suppress(Unsatisfiable):  # an operation that takes nothing cannot be sent wrongly
            send()

    with serving(app) as port:
        schema: Any = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
        for found in schema.get_all_operations():
            for mode in GenerationMode:
                check(found.ok(), mode)
    assert statuses["POST /v1/completions"] >= {200, 400}, statuses
    allowed = {200, 400, 404, 405, 408, 413, 415, 429}
    assert all(found <= allowed for found in statuses.values()), statuses
