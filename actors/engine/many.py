"""Several requests in one call: as many at a time as the engine runs, results as they finish.

A thread of the driver for each that runs; each waits for its own tokens, and outlives losses of
actors and new plans by itself (requests.py, replanning.py).
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from hotcold.native.bindings.executor import Request
from hotcold.native.errors import KernelError
from hotcold.runtime.text.generation import GenerationStats, Token

SIGNAL_S = 5.0  # for threads to end after Ctrl-C, when Ray may be gone; the engine then closes
Tokens = Generator[Token, None, GenerationStats | None]


@dataclass(frozen=True)
class Completion:
    """The continuation of one of several prompts.

    Args:
        index: of the prompt, from 0.
        text: without the prompt.
        token_ids: likewise.
        finish_reason: "length", "eos" or "stop".
        stats: its figures.
        tokens: what it is made of.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str
    stats: GenerationStats
    tokens: Sequence[Token] = ()


def completions(
    requests: Sequence[Request], at_once: int, tokens: Callable[[Request], Tokens]
) -> Iterator[Completion]:
    """Run all, `at_once` at a time, begun in order; yields each when it is finished.

    Leaving the iterator ends those that run, each after its next token. So does an error of any of
    them, which is raised.
    """
    stop, lock = threading.Event(), threading.Lock()
    done: queue.SimpleQueue[Completion | BaseException] = queue.SimpleQueue()
    left = iter(enumerate(requests))

    def work() -> None:
        while True:
            with lock:
                index, request = next(left, (-1, None))
            if request is None or stop.is_set():
                return
            try:
                made = _completion(index, tokens(request), stop)
            except BaseException as error:  # noqa: BLE001 - raised where the caller waits
                done.put(error)
                return
            if made is not None:
                done.put(made)

    workers = [
        threading.Thread(target=work, name=f"hotcold-request-{number}", daemon=True)
        for number in range(min(at_once, len(requests)))
    ]
    patience_s = None
    try:
        for worker in workers:
            worker.start()
        for _ in requests:
            made = done.get()
            if isinstance(made, BaseException):
                raise made
            yield made
    except BaseException as error:
        if not isinstance(error, (Exception, GeneratorExit)):
            patience_s = SIGNAL_S
        raise
    finally:
        stop.set()
        for worker in workers:
            if worker.ident is not None:
                worker.join(patience_s)


def _completion(index: int, tokens: Tokens, stop: threading.Event) -> Completion | None:
    """Take all tokens of a request; None where it was stopped meanwhile."""
    made: list[Token] = []
    while not stop.is_set():
        try:
            made.append(next(tokens))
        except StopIteration as end:
            stats = end.value
            if stats is None:
                raise KernelError("the engine ended a generation without its figures") from None
            text, ids = "".join(token.text for token in made), [token.id for token in made]
            return Completion(index, text, ids, stats.finish, stats, made)
    tokens.close()
    return None
