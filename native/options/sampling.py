"""Sampling: how one request is continued; a table of options (table.py).

Imports nothing compiled; `hotcold.runtime.options.config` hands it on to callers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hotcold.native.abi.generated import MAX_TOP
from hotcold.native.errors import ConfigError
from hotcold.native.options.table import MAX_SEED, check_all, documented, option

Top = tuple[tuple[int, float], ...]  # ids and log probabilities, best first


@dataclass(frozen=True)
class Sampling:
    """How one request is continued.

    Raises:
        ConfigError: a value that is not allowed.
    """

    max_tokens: int = option(
        64, "New tokens at most; a full context ends the text earlier.", low=1, high=1 << 24
    )
    temperature: float = option(
        0.0, "How random the draw is; 0 takes the likeliest token every time.", low=0.0, high=100.0
    )
    top_k: int = option(
        0, "Draw from this many of the likeliest tokens; 0: from all.", low=0, high=1 << 30
    )
    top_p: float = option(
        1.0,
        "Draw from the likeliest tokens that together have this probability; 1: from all.",
        low=0.0,
        high=1.0,
        above=True,
    )
    seed: int = option(
        0, "A draw depends on the seed and the position alone.", low=0, high=MAX_SEED
    )
    stop: tuple[str, ...] = option((), "End before this text.", metavar="TEXT", many=True)
    ignore_eos: bool = option(False, "Go on after the end-of-text token.")
    special: bool = option(
        False, "Read control tokens in the prompt, </s> for example, as such; else they are text."
    )
    logprobs: int = option(
        0,
        "Tell the log probabilities of this many of the likeliest tokens.",
        low=0,
        high=MAX_TOP,
    )

    def __post_init__(self) -> None:
        check_all(self)
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise ConfigError("stop must be a sequence of strings")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise ConfigError("stop strings must be non-empty text")


documented(Sampling)(Sampling)
