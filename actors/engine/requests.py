"""Running a request to its end, whatever happens to the actors meanwhile.

A request that lost an actor waits for the supervisor's new epoch and goes on: the prompt is now
what was asked plus what was generated, most of it is in the KV memory (native/loop/slots.c) or else
is computed again to the same bits, and the next draw depends on (seed, position) alone, so the
tokens are those of an undisturbed run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.errors import ActorLostError
from hotcold.runtime.engine.request import Sampled

RECOVER_S = 60.0


class Recovers(Protocol):
    """Who brings the actors back: the owner's supervisor, or a connected engine's lookup."""

    @property
    def epoch(self) -> int:
        """The running epoch."""

    def await_epoch(self, after: int, timeout_s: float) -> None:
        """Wait until a later epoch runs, or raise ActorLostError."""

    def replayed(self, seconds: float) -> None:
        """Told how long a resumed request took from the new epoch to its next token."""


def run(
    request: Request,
    attempt: Callable[[Request], Iterator[Sampled | RequestTimes]],
    recovers: Recovers,
    restarts: int,
) -> Iterator[Sampled | RequestTimes]:
    """Stream a request's ids; its times come last.

    `attempt` runs a request on the actors there are now, and raises ActorLostError; `restarts`
    losses are survived.

    Raises:
        ActorLostError: after one loss too many; token_ids has what was generated.
    """
    received: list[int] = []
    losses, began = 0, time.monotonic_ns()
    while True:
        epoch = recovers.epoch
        try:
            if is_over(request, received):  # all had come before the loss
                yield RequestTimes(began, began, time.monotonic_ns(), 0, 0, 0)
                return
            resumed = time.monotonic() if losses else None
            for item in attempt(rest_of(request, received)):
                if resumed is not None:
                    recovers.replayed(time.monotonic() - resumed)
                    resumed = None
                if isinstance(item, RequestTimes):  # of the last part, begun with the first
                    yield of_all(item, began) if losses else item
                    return
                received += item.ids
                yield item
            return
        except ActorLostError as error:
            losses += 1
            error.token_ids = list(received)
            if losses > restarts:
                raise
            try:
                recovers.await_epoch(epoch, RECOVER_S)
            except ActorLostError as given_up:
                given_up.token_ids = list(received)
                raise given_up from error


def is_over(request: Request, received: list[int]) -> bool:
    """Whether these are all tokens of a request: their number, or the last one, says so."""
    ended = bool(received) and received[-1] in request.eos
    return ended or 0 < request.max_tokens == len(received)


def of_all(times: RequestTimes, began_ns: int) -> RequestTimes:
    """Times of a whole request, of its last part; how much it reused at first nobody knows."""
    return replace(times, begin_ns=began_ns, prompt_ns=began_ns, reused=0)


def rest_of(request: Request, received: list[int]) -> Request:
    """What is left of a request after some tokens."""
    if not received:
        return request
    prompt = np.concatenate([request.prompt, np.array(received, np.int32)])
    left = request.max_tokens - len(received)
    given = request.n_given or len(request.prompt)  # what was generated is decoded again, not dense
    return replace(request, prompt=prompt, max_tokens=left, n_given=given)
