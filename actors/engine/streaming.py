"""Generations for asyncio: a thread takes the tokens, an async iterator hands them on.

The thread outlives losses of actors and new plans as any generation does (requests.py,
replanning.py); the event loop never waits for Ray.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import suppress

from hotcold.native.errors import HotcoldError
from hotcold.runtime.text.generation import GenerationStats, Token

Batches = Generator[list[Token], None, GenerationStats | None]
AsyncBatches = AsyncGenerator[list[Token] | GenerationStats, None]
AGAIN_S = 0.1


async def streamed(start: Callable[[], Batches], cancel: Callable[[], None]) -> AsyncBatches:
    """What `start` makes, run in a thread of its own; its figures come last.

    Closing the iterator, or cancelling the task that waits for it, calls `cancel`, which ends the
    generation soon, and waits until it has ended.
    """
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[list[Token] | GenerationStats | BaseException | None] = asyncio.Queue()
    over, left = asyncio.Event(), threading.Event()

    def hand_on(call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed, nobody waits
            loop.call_soon_threadsafe(call, *arguments)

    def work() -> None:
        try:
            batches = start()
            try:
                while not left.is_set():
                    hand_on(ready.put_nowait, next(batches))
            except StopIteration as end:
                hand_on(ready.put_nowait, end.value)
            finally:
                batches.close()
        except BaseException as error:  # noqa: BLE001 - raised where the caller waits
            hand_on(ready.put_nowait, error)
        finally:
            hand_on(over.set)

    threading.Thread(target=work, name="hotcold-stream", daemon=True).start()
    ended = False
    try:
        while not ended:
            item = await ready.get()
            ended = not isinstance(item, list)
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                yield item
    finally:
        left.set()
        while not ended and not over.is_set():  # the first may come before the request itself
            with suppress(HotcoldError):  # a closed engine, which ends it, too
                cancel()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(over.wait(), AGAIN_S)
        await over.wait()
