"""Figures of a generation: of the text that was asked for, not of what ran past its end."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hotcold.actors.engine.client import Client
from hotcold.native.bindings.executor import RequestTimes
from hotcold.runtime.engine.deployment import deploy, solve
from hotcold.runtime.engine.prepare import prepare_model
from hotcold.runtime.engine.request import Sampled
from hotcold.runtime.options.config import EngineConfig, Sampling

MS = 1_000_000


class Recorded(Client):
    """Answers with a token a millisecond, 40 of them, in two parts; no actor is asked."""

    def __init__(self, ids: list[int]) -> None:
        prepared = prepare_model(EngineConfig(predictor="exact"))
        super().__init__("recorded", {}, deploy(prepared, solve(prepared)))
        self.ids = ids

    @property
    def _transport(self) -> Any:
        return SimpleNamespace(cancel=lambda request: None, one_at_a_time=False)

    def _sampled(self, request: Any) -> Iterator[Sampled | RequestTimes]:
        for begin in (0, 20):
            ids, times = self.ids[begin : begin + 20], [n * MS for n in range(begin, begin + 20)]
            yield Sampled(ids, [-1.0] * 20, times)
        yield RequestTimes(-5 * MS, 0, 39 * MS, 40, 0, 39_000)


@pytest.mark.parametrize(("stop", "tokens"), [((), 40), ((" king",), 11)])
def test_a_stop_string_does_not_change_the_speed(stop: tuple[str, ...], tokens: int) -> None:
    client = Recorded([])
    encode = client._text.tokenizer.encode
    client.ids = [*encode(" a")[-1:] * 10, *encode(" king")[-1:], *encode(" b")[-1:] * 29]
    sampling = Sampling(max_tokens=40, stop=stop, ignore_eos=True)
    list(client._one(client._request("Once", sampling)))
    last = client.last
    assert last is not None and last.new_tokens == tokens
    assert last.decode_s == pytest.approx((tokens - 1) / 1e3)
    assert last.decode_tokens_per_s == pytest.approx(1000)
    assert last.gb_per_s == pytest.approx(1e-3)
