"""Several prompts: each a text, token ids, or a mapping with `prompt` and fields of Sampling.

They come as Python objects or as a file: a prompt a line, or JSON lines. All are checked before any
of them starts.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from hotcold.native.errors import ConfigError
from hotcold.native.options.table import check_names
from hotcold.runtime.options.config import Sampling

Prompt = str | Sequence[int]
Given = Prompt | Mapping[str, Any]
Made = TypeVar("Made")


class Line(NamedTuple):
    """A prompt of a file, and the number of its line."""

    number: int
    given: Given


def sampling_of(fields: Mapping[str, Any], default: Sampling) -> Sampling:
    """`default` with other values for some fields; one stop string may stand for a list of one.

    Raises:
        ConfigError: an unknown field, or a value that is not allowed.
    """
    check_names(fields, Sampling)
    if "stop" in fields:
        stop = fields["stop"]
        fields = {**fields, "stop": tuple(stop) if isinstance(stop, (list, tuple)) else (stop,)}
    return replace(default, **fields)


def asked_of(
    prompts: Iterable[Given],
    default: Sampling,
    make: Callable[[Prompt, Sampling], Made],
    where: Callable[[int], str] = "prompt {}".format,
) -> list[Made]:
    """What `make` makes of each prompt and its sampling, in order.

    `where` names a prompt in messages, by its index.

    Raises:
        ConfigError: of the first prompt that cannot be used, with its name.
    """
    if isinstance(prompts, (str, bytes, Mapping)):
        raise ConfigError(f"the prompts {prompts!r:.80} are a single one; give a list of prompts")
    made = []
    for index, given in enumerate(prompts):
        try:
            made.append(make(*_asked(given, default)))
        except ConfigError as error:
            raise ConfigError(f"{where(index)}: {error}") from None
    return made


def _asked(given: Given, default: Sampling) -> tuple[Prompt, Sampling]:
    if not isinstance(given, Mapping):
        return given, default
    fields = dict(given)
    if "prompt" not in fields:
        found = ", ".join(map(str, fields)) or "nothing"
        raise ConfigError(f"it has no 'prompt', only {found:.80}; give it one")
    return fields.pop("prompt"), sampling_of(fields, default)


def lines_of(raw: bytes, name: str) -> list[Line]:
    """The prompts of a file; blank lines are left out.

    If the first other line is a JSON object, all are read as such.

    Raises:
        ConfigError: no prompt, or a line that is not UTF-8 or no JSON object where it should be;
            says which line of `name`.
    """
    found: list[Line] = []
    as_json: bool | None = None
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as problem:
            raise ConfigError(
                f"line {number} of {name} is not UTF-8 (byte 0x{line[problem.start]:02x} at offset "
                f"{problem.start}); convert it, with iconv for example"
            ) from None
        if not text.strip():
            continue
        fields = _object(text) if as_json is not False else None
        if as_json is None:
            as_json = fields is not None
        if as_json and fields is None:
            raise ConfigError(
                f"line {number} of {name} is no JSON object ({text!r:.60}), as the first one is; "
                "write all lines as objects with a 'prompt', or all as plain text"
            )
        found.append(Line(number, text if fields is None else fields))
    if not found:
        raise ConfigError(f"{name} has no prompts; write one a line")
    return found


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
