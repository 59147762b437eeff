"""Generations for asyncio: the tokens of any other, beside each other, and ended by a cancel."""

import asyncio
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from hotcold.actors import Engine
from hotcold.native.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_ray")]


async def ids(engine: Engine, prompt: list[int], tokens: int, seed: int = 0) -> list[int]:
    made = engine.agenerate(prompt, max_tokens=tokens, temperature=1.0, seed=seed, ignore_eos=True)
    return [token.id async for token in made]


def alone(engine: Engine, prompt: list[int], tokens: int, seed: int = 0) -> list[int]:
    made = engine.generate(prompt, max_tokens=tokens, temperature=1.0, seed=seed, ignore_eos=True)
    return [token.id for token in made]


def test_beside_each_other_and_ended_early(tiny_model: Path) -> None:
    async def together(engine: Engine) -> None:
        seeds = range(5)  # more than run at once
        made = await asyncio.gather(*(ids(engine, [1, 2, 3], 30, seed) for seed in seeds))
        assert made == expected
        tasks = [asyncio.create_task(ids(engine, [1, 2, 3], 90)) for _ in range(4)]
        first = engine.agenerate([4], max_tokens=90, ignore_eos=True)
        async with aclosing(first):
            await anext(first)
            assert len(list(engine.generate([1], max_tokens=1))) == 1
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, (asyncio.CancelledError, list)) for one in ended)
        with pytest.raises(ConfigError, match="no tokens"):
            await ids(engine, [], 3)

    with Engine.launch(tiny_model, sequences=2) as engine:
        expected = [alone(engine, [1, 2, 3], 30, seed) for seed in range(5)]
        asyncio.run(together(engine))
        begun = time.monotonic()
        assert alone(engine, [1, 2, 3], 30) == expected[0]  # at once: nothing runs any more
        assert time.monotonic() - begun < 5
        assert engine.last is not None and engine.last.new_tokens == 30


def test_two_engines_each_on_a_part_of_the_machine(tiny_model: Path) -> None:
    async def both(*engines: Engine) -> list[list[int]]:
        return await asyncio.gather(*(ids(engine, [1, 2, 3], 20) for engine in engines))

    with (
        Engine.launch(tiny_model, threads=1, name="half") as first,
        Engine.launch(tiny_model, threads=1, name="other-half") as second,
    ):
        made = asyncio.run(both(first, second))
        assert made == [alone(first, [1, 2, 3], 20)] * 2
        assert set(first.pids.values()).isdisjoint(second.pids.values())


@pytest.mark.parametrize("transport", ["ray"])
def test_over_the_ray_transport_one_at_a_time(tiny_model: Path, transport: str) -> None:
    with Engine.launch(tiny_model, transport=transport) as engine:
        assert asyncio.run(ids(engine, [1, 2], 3)) == alone(engine, [1, 2], 3)
