"""The generations of one request, run beside each other, and what ends them early.

All of them end as soon as one fails, the time is out, or the client has left.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hotcold.actors.serve.admission import Admission, Line
from hotcold.actors.serve.errors import ApiError
from hotcold.native.errors import ActorLostError, ConfigError, HotcoldError
from hotcold.runtime.options.config import Sampling
from hotcold.runtime.text.generation import GenerationStats, TextCodec, Token

Item = list[Token] | GenerationStats
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Result = TypeVar("Result")


class Generates(Protocol):
    """An `Engine`, or several behind one name."""

    @property
    def text(self) -> TextCodec:
        """The model's tokenizer."""

    @property
    def context(self) -> int:
        """Tokens of a prompt and what follows it, at most."""

    @property
    def sequences(self) -> int:
        """Generations that run at once."""

    def astream(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Item, None]:
        """Lists of tokens that came together, then their figures."""


@dataclass(frozen=True)
class Asked:
    """One generation of a request."""

    ids: list[int]
    sampling: Sampling


async def run(
    engine: Generates, admission: Admission, line: Line, asked: Sequence[Asked], timeout_s: float
) -> AsyncGenerator[tuple[int, Item], None]:
    """Run all, each once it has a slot; yields their tokens and figures with their index.

    Raises:
        ApiError: the time is out, or the engine is lost for good.
    """
    ready: asyncio.Queue[tuple[int, Item | BaseException | None]] = asyncio.Queue()

    async def one(index: int, own: Asked) -> None:
        try:
            async with (
                admission.slot(line),
                aclosing(engine.astream(own.ids, own.sampling)) as made,
            ):
                async for item in made:
                    ready.put_nowait((index, item))
            ready.put_nowait((index, None))
        except Exception as error:  # noqa: BLE001 - raised where the request waits
            ready.put_nowait((index, error))

    tasks = [asyncio.create_task(one(index, own)) for index, own in enumerate(asked)]
    loop = asyncio.get_running_loop()
    deadline, left = loop.time() + timeout_s, len(tasks)
    try:
        while left:
            try:
                index, item = await asyncio.wait_for(ready.get(), deadline - loop.time())
            except asyncio.TimeoutError:
                raise ApiError(
                    408, f"the request took {timeout_s:g} s, the longest that this server lets it"
                ) from None
            if isinstance(item, BaseException):
                raise _typed(item)
            left -= item is None
            if item is not None:
                yield index, item
    finally:
        await cancelled(tasks)


def _typed(error: BaseException) -> BaseException:
    if isinstance(error, ActorLostError):
        message = "the engine lost a part of it too often; it is being replaced, try again"
        return ApiError(503, message, code="engine_lost", headers={"Retry-After": "5"})
    if isinstance(error, ConfigError):
        return ApiError(400, str(error))
    if isinstance(error, HotcoldError):
        return ApiError(503, "the engine cannot generate now", headers={"Retry-After": "5"})
    return error


async def cancelled(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What the work gives; None where the client has left, which ends the work at once."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(work), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled([task for task in tasks if not task.done()])
    return tasks[0].result() if not tasks[0].cancelled() else None
