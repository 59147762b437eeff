"""Tables of options: a frozen dataclass whose fields are rows, each an `option(...)`.

A row says once what a value is called, may be and is for. The checks of the dataclass, the options
of the commands (actors/cli/common/options.py), `help(Engine.launch)` and examples/OPTIONS.md are
made from it. Tables: sampling.py, runtime/options/config.py, runtime/offline/plant/options.py.
Imports nothing compiled, and no click.
"""

import difflib
import inspect
import math
import os
import textwrap
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin

from hotcold.native.errors import ConfigError

MAX_SEED = (1 << 64) - 1
Documented = TypeVar("Documented", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One row.

    Args:
        default: the value where nothing is given; None: decided later, as `shown` says.
        help: what it is for, one sentence or two.
        name: of the field, and of the keyword in Python.
        type: int, float, bool or str; str also where Python takes objects.
        level: which commands take it, a key of config.COMMANDS; "": Python only.
        not_for: commands of that level that choose the value themselves.
        flag: its name on the command line, if it has another one there.
        shown: the default in words, where the value does not say it.
        choices: the values allowed.
        low: least value allowed.
        high: largest value allowed.
        above: `low` itself is not allowed.
        metavar: what stands for the value in --help.
        folder: the value names a folder that exists.
        many: the command line takes it any number of times.
        variable: environment variable that is used where the value is None.
    """

    default: Any
    help: str
    name: str = ""
    type: type = str
    level: str = ""
    not_for: tuple[str, ...] = ()
    flag: str = ""
    shown: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: bool = False
    metavar: str | None = None
    folder: bool = False
    many: bool = False
    variable: str = ""

    @property
    def dashed(self) -> str:
        """Its name on the command line, without the leading dashes."""
        return self.flag or self.name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default for people; "" where there is nothing to say."""
        if self.shown or self.many or self.default is None or self.default is False:
            return self.shown
        return f"{self.default:g}" if self.type is float else str(self.default)

    @property
    def limits(self) -> str:
        """The values allowed, for people; "" where any is."""
        if self.choices or self.low is None:
            return ", ".join(self.choices)
        if self.high is None:
            return f"{'above' if self.above else 'of at least'} {self.low:g}"
        low, high = (f"{end:g}" if self.type is float else end for end in (self.low, self.high))
        return f"({low}, {high}]" if self.above else f"{low}..{high}"

    def check(self, value: Any) -> None:
        """Refuse a value that is not allowed.

        Raises:
            ConfigError: naming the option, the value and what is allowed.
        """
        name = self.name
        if value is None and self.default is None:
            value, name = os.environ.get(self.variable) or None, self.variable
            if value is None:
                return
        if self.choices and value not in self.choices:
            raise ConfigError(f"{name} {value!r:.80} is unknown; choose from {self.limits}")
        if self.type in (int, float) and not self._holds(value):
            kind = "a whole number" if self.type is int else "a number"
            within = f" in {self.limits}" if self.high is not None else f" {self.limits}".rstrip()
            raise ConfigError(f"{name} {value!r} is not {kind}{within}")
        if self.type is bool and not isinstance(value, bool):
            raise ConfigError(f"{name} {value!r:.80} is not True or False")

    def _holds(self, value: Any) -> bool:
        kinds = (int,) if self.type is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            return False
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return low < value <= high if self.above else low <= value <= high


def option(default: Any, help: str, level: str = "", **more: Any) -> Any:  # noqa: A002
    """A field of a table; `more` are further fields of Option."""
    row = {"option": Option(default, help, level=level, **more)}
    if default is dict:
        return field(default_factory=dict, metadata=row)
    return field(default=default, metadata=row)


@cache
def rows(table: Hashable) -> dict[str, Option]:
    """The rows of a table by name, in its order."""
    return {
        one.name: replace(one.metadata["option"], name=one.name, type=_value_type(one.type))
        for one in fields(cast(Any, table))
        if "option" in one.metadata
    }


def _value_type(hint: Any) -> type:
    """int, float or bool where a field is of that type alone or None; else str."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] or [hint]
    plain = kinds[0] if len(kinds) == 1 and get_origin(hint) is not tuple else str
    return plain if plain in (int, float, bool) else str


def check_all(made: Any) -> None:
    """Check every value of a table's instance.

    Raises:
        ConfigError: the first one that is not allowed.
    """
    for name, row in rows(made.__class__).items():
        row.check(getattr(made, name))


def check_names(given: Iterable[str], table: type) -> None:
    """Refuse keywords that no row has.

    Raises:
        ConfigError: with the name that was probably meant.
    """
    known = list(rows(table))
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; options: {', '.join(known)}"
            raise ConfigError(f"unknown option {name!r}{hint}")


_indented = textwrap.TextWrapper(
    92, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False
).wrap


def documented(table: type) -> Callable[[Documented], Documented]:
    """Decorator: the docstring ends with the rows of a table."""

    def decorate(target: Documented) -> Documented:
        lines = [inspect.cleandoc(target.__doc__ or ""), "", "Options:"]
        for name, row in rows(table).items():
            allowed = f" Allowed: {row.limits}." if row.limits else ""
            default = f" Default: {row.default_text}." if row.default_text else ""
            text = f"{name}: {row.help}{allowed}{default}"
            lines += _indented(text)
        target.__doc__ = "\n".join(lines)
        return target

    return decorate
