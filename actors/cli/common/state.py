"""What the whole command line shares while it runs; imports nothing, for `hotcold --help` does."""

from dataclasses import dataclass


@dataclass
class State:
    """Whether a failure shows its traceback, a result its JSON, and what was typed."""

    debug: bool = False
    json: bool = False
    words: tuple[str, ...] = ()
