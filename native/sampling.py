"""Sampling: how one request is continued, one object from the command line to the native request.

Imports nothing compiled; `hotcold.runtime.options.config` hands it on to callers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hotcold.native.checks import check_range
from hotcold.native.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How one request is continued.

    Args:
        max_tokens: new tokens at most; the context may end it earlier.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 is off.
        top_p: keep the likeliest tokens that reach this probability; 1 is off.
        seed: the draw is a function of (seed, position) alone.
        stop: strings that end the text; they are not part of it.
        ignore_eos: go on past the end-of-sequence token.

    Raises:
        ConfigError: a value out of range.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_range("max_tokens", self.max_tokens, 1, 1 << 24)
        check_range("top_k", self.top_k, 0, 1 << 30)
        check_range("seed", self.seed, 0, (1 << 64) - 1)
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise ConfigError(f"temperature {self.temperature} is outside 0..100")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is outside (0, 1]; 1 turns it off")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise ConfigError("stop must be a sequence of strings")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise ConfigError("stop strings must be non-empty text")


GREEDY = Sampling()  # the likeliest token every time
