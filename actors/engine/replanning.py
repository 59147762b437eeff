"""Generations that outlive their plan: a new one takes over between two tokens.

Where moves of neurons lead from one plan to the other, they do not even notice
(runtime/engine/moving.py). Else the engine ends the running epoch and begins another with the new
plan. What was generated stays, the next token is computed by the new plan from the keys and values
there are, its draw depends on (seed, position) alone: the text goes on as if it had been begun with
that plan. The token that was being computed when the epoch ended is computed again. Losses of
actors are `requests.py`'s; this wraps it.
"""

import time
from collections.abc import Callable, Iterator

from hotcold.actors.engine.requests import Recovers, is_over, of_all, rest_of
from hotcold.native.bindings.executor import Request, RequestTimes
from hotcold.native.errors import ActorLostError, PlanReplaced
from hotcold.runtime.engine.request import Sampled

LOAD_S = 120.0


def across_plans(
    request: Request,
    run: Callable[[Request], Iterator[Sampled | RequestTimes]],
    epochs: Recovers,
) -> Iterator[Sampled | RequestTimes]:
    """Stream a request's ids, whatever plans follow each other meanwhile; its times come last.

    `run` runs a request on the plan there is now, and raises PlanReplaced when that ends.

    Raises:
        ActorLostError: as `run` does; token_ids has all that was generated.
    """
    received: list[int] = []
    began, replaced = time.monotonic_ns(), False
    while True:
        epoch, before = epochs.epoch, len(received)
        try:
            for item in run(rest_of(request, received)):
                if isinstance(item, RequestTimes):
                    yield of_all(item, began) if replaced else item
                    return
                received += item.ids
                yield item
            return
        except PlanReplaced:
            replaced = True
            if is_over(request, received):
                yield RequestTimes(began, began, time.monotonic_ns(), len(received), 0, 0)
                return
            epochs.await_epoch(epoch, LOAD_S)
        except ActorLostError as error:
            error.token_ids = received[:before] + error.token_ids
            raise
