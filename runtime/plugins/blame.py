"""Saying which line of a plug-in failed: "mine.py:7: RuntimeError: boom".

Called around all plug-in code: loading a file, constructing a policy, running it. The author sees
the innermost frame inside the plug-in's own file; the whole traceback is kept as the cause of the
error.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from hotcold.native.errors import HotcoldError, PolicyError

Caught = type[BaseException] | tuple[type[BaseException], ...]


class PluginTraceback(Exception):
    """The traceback of a plug-in that ran in another process, as text; only used as a cause."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


@contextmanager
def blaming(
    name: str, file: str | None, noun: str = "policy", caught: Caught = (Exception, SystemExit)
) -> Iterator[None]:
    """Turn what foreign code raises in this block into a PolicyError that names its line.

    KeyboardInterrupt passes unless it is caught: in this process it is the user's.
    """
    try:
        yield
    except caught as error:
        raise PolicyError(describe(error, name, file, noun)) from error


@contextmanager
def blaming_predictor(name: str, predictor: object) -> Iterator[None]:
    """The same for a predictor; what our own refuse on purpose passes as it is."""
    file = source_file(predictor)
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, HotcoldError) and file and _is_own(file):
            raise
        raise PolicyError(describe(error, name, file, "predictor")) from error


def describe(error: BaseException, name: str, file: str | None, noun: str = "policy") -> str:
    """One line for an exception: where in the plug-in's file, what, and its message.

    A plug-in given as "file.py:Class" is named by that file; for others the name comes first. An
    error that a built-in policy raises on purpose concerns the user and needs no line.
    """
    if isinstance(error, HotcoldError) and file and _is_own(file):
        return str(error)
    given = name.rpartition(":")[0]
    by_file = given.endswith(".py")
    line = _line_in(error, file) if file else None
    text = type(error).__name__
    message = _first_line(error)
    if message:
        text += f": {message}"
    if line is not None:
        text = f"{given if by_file else os.path.basename(str(file))}:{line}: {text}"
    elif by_file:
        return f"{given}: {text}"
    return text if by_file else f"{noun} {name!r}: {text}"


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, the last 20,000 characters."""
    return "".join(traceback.format_exception(error))[-20_000:]


def source_file(plugin: object) -> str | None:
    """Path of the file that defines a class or an object's class."""
    owner = plugin if isinstance(plugin, type) else type(plugin)
    module = sys.modules.get(owner.__module__)
    return getattr(module, "__file__", None) if isinstance(module, ModuleType) else None


def _is_own(file: str) -> bool:
    hotcold = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    return os.path.realpath(file).startswith(os.path.join(hotcold, "policies", ""))


def is_own(plugin: object) -> bool:
    """Whether a plug-in is one of hotcold's own."""
    file = source_file(plugin)
    return file is not None and _is_own(file)


def _line_in(error: BaseException, file: str) -> int | None:
    path = os.path.realpath(file)
    if isinstance(error, SyntaxError) and os.path.realpath(error.filename or "") == path:
        return error.lineno
    line = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if os.path.realpath(frame.f_code.co_filename) == path:
            line = number
    return line


def _first_line(error: BaseException) -> str:
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error).strip()
    except Exception:  # a __str__ that raises must not hide the error
        return ""
    return text.splitlines()[0][:500] if text else ""
