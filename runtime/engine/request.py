"""What a driver asks of the leading executor, and what comes back."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hotcold.native.bindings.executor import Request
from hotcold.native.options.sampling import Top
from hotcold.runtime.options.config import Sampling


@dataclass(frozen=True)
class Sampled:
    """Ids, log probabilities and times (ns of CLOCK_MONOTONIC) that became ready together.

    top: the likeliest alternatives of each, where they are wanted.
    """

    ids: list[int]
    logprobs: list[float]
    times_ns: list[int]
    top: list[Top] = field(default_factory=list)

    @property
    def each(self) -> Iterator[tuple[int, float, int, Top]]:
        """One by one."""
        yield from zip(
            *(self.ids, self.logprobs, self.times_ns, self.top or [()] * len(self.ids)), strict=True
        )


def make_request(
    ids: list[int], sampling: Sampling | None, context: int, eos_ids: tuple[int, ...] = ()
) -> Request:
    """A native request cut to what the context holds; sampling None: no new text."""
    prompt = np.array(ids, dtype=np.int32)
    if sampling is None:
        return Request(time.monotonic_ns(), prompt, Sampling())
    return Request(
        id=time.monotonic_ns(),
        prompt=prompt,
        max_tokens=max(0, min(sampling.max_tokens, context - len(ids) + 1)),
        eos=() if sampling.ignore_eos else eos_ids,
        sampling=sampling,
    )
