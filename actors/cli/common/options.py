"""Options of commands, made from the tables of options (native/options/table.py).

`engine_options` gives a command its rows of EngineConfig and hands it one; `option` is for single
rows, changed where a command needs it. Values are checked by the table, so that a library user gets
the same errors.
"""

import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from hotcold.actors.cli.common.state import State
from hotcold.native.errors import ConfigError
from hotcold.native.options.table import Option, rows
from hotcold.runtime.options.config import COMMANDS, ENGINE, EngineConfig

Command = TypeVar("Command", bound=Callable[..., Any])


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        setattr(ctx.ensure_object(State), str(param.name), True)


_FLAG: dict[str, Any] = {
    "is_flag": True,
    "expose_value": False,
    "is_eager": True,
    "callback": _remember,
}
debug_option = click.option("--debug", **_FLAG, help="Show the traceback of a failure.")
json_option = click.option("--json", **_FLAG, help="End with one line of JSON on standard output.")


def out_option(help: str, required: bool = True) -> Callable[[Command], Command]:  # noqa: A002
    """Add --out DIR, a folder that the command makes, on a disk that takes files; as a Path."""

    def check(_ctx: click.Context, _param: click.Parameter, out: Path | None) -> Path | None:
        if out is not None:
            try:
                there = next(path for path in (out, *out.absolute().parents) if path.exists())
                if not there.is_dir():
                    raise ConfigError(f"--out {out} is a file; give a folder")
                with tempfile.TemporaryFile(dir=there):
                    pass
            except OSError as error:
                raise ConfigError(
                    f"--out {out} cannot be written ({error.strerror}); give a folder you can write"
                ) from error
        return out

    kind = click.Path(path_type=Path)
    return click.option(
        "--out", required=required, metavar="DIR", type=kind, callback=check, help=help
    )


def device_option(help: str) -> Callable[[Command], Command]:  # noqa: A002
    """Add --device, which torch computes on."""
    kind = click.Choice(("auto", "cpu", "cuda"))
    return click.option("--device", type=kind, default="auto", show_default=True, help=help)


def texts_option(
    flag: str,
    help: str,  # noqa: A002
    into: str = "",
    required: bool = False,
) -> Callable[[Command], Command]:
    """Add an option that names text files and may be repeated; paths of files that are there."""
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    names = (flag, into) if into else (flag,)
    return click.option(
        *names, multiple=True, required=required, metavar="FILE", type=kind, help=help
    )


def count_option(
    flag: str,
    help: str,  # noqa: A002
    low: int,
    high: int | None,
    default: int | None = None,
    into: str = "",
) -> Callable[[Command], Command]:
    """Add an option that is a whole number; without a default it may be repeated."""
    return click.option(
        *((flag, into) if into else (flag,)),
        type=click.IntRange(low, high),
        default=default,
        show_default=default is not None,
        multiple=default is None,
        help=help,
    )


def option(row: Option, into: str = "", **changes: Any) -> Callable[[Command], Command]:
    """A table's row as an option of a command, with `changes` to the row's fields.

    `into` is the parameter of the command that gets the value; "": named like the row.
    """
    row = replace(row, **changes)
    flag, default = f"--{row.dashed}", row.default
    kind: Any = row.type
    if row.choices:
        kind = click.Choice(row.choices)
    elif row.folder:
        kind = click.Path(exists=True, file_okay=False, path_type=Path)
    if kind is bool and default is not False:
        flag += f"/--no-{row.dashed}"
    text = f"{row.help} May be repeated." if row.many else row.help
    if row.default_text:
        text += f"  [default: {row.default_text}]"

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:  # noqa: ANN401
        try:
            if not row.many:
                row.check(value)
        except ConfigError as error:
            raise click.BadParameter(str(error), ctx, param) from error
        return value

    return click.option(
        flag,
        into or row.name,
        type=kind,
        is_flag=kind is bool or None,
        default=() if row.many else default,
        multiple=row.many,
        metavar=row.metavar,
        callback=check,
        help=text,
    )


def engine_options(
    name: str, *, own: Collection[str] = (), argument: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of an engine; it receives `options: EngineConfig`.

    `name` is as in COMMANDS; `own` are rows that the command defines itself. With `argument` the
    model may also be named by an argument, [MODEL].
    """
    levels = list(COMMANDS)
    last = next(place for place, level in enumerate(levels) if name in COMMANDS[level])
    taken = [
        row
        for row in ENGINE.values()
        if row.level in levels[: last + 1] and name not in row.not_for and row.name not in own
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(**values: Any) -> Any:  # noqa: ANN401 - whatever click parsed
            given = {row.name: values.pop(row.name) for row in taken}
            source = click.get_current_context().get_parameter_source
            if given.get("plan") is not None and source("policy") is ParameterSource.COMMANDLINE:
                raise click.UsageError("--plan and --policy exclude each other; give one of them")
            if "settings" in given:
                given["settings"] = parse_settings(given["settings"])
            if argument:
                given["model"] = choose_model(values.pop("folder"), given["model"])
            return function(options=EngineConfig(**given), **values)

        command: Callable[..., Any] = debug_option(call)
        for row in reversed(taken):
            command = option(row)(command)
        if argument:
            command = click.argument("folder", required=False, metavar="[MODEL]")(command)
        return command

    return decorate


def table_options(
    table: type, *, without: Collection[str] = (), **defaults: Any
) -> Callable[[Command], Command]:
    """Give a command the options of a table but for some, with defaults of its own."""

    def decorate(command: Command) -> Command:
        for name, row in reversed(rows(table).items()):
            if name not in without:
                command = option(row, default=defaults.get(name, row.default))(command)
        return command

    return decorate


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """--set NAME=VALUE, repeated, as a dictionary.

    Raises:
        ConfigError: not of that form, or a name given twice.
    """
    parsed: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not all(part.isidentifier() for part in name.strip().split(".")):
            raise ConfigError(f"--set {setting!r} is not NAME=VALUE; for example --set share=0.8")
        if name.strip() in parsed:
            raise ConfigError(f"--set gives {name.strip()!r} twice; give it once")
        parsed[name.strip()] = value
    return parsed


def choose_model(argument: str | None, option: str | None) -> str | None:
    """The model of a command that takes it as MODEL or as --model.

    Raises:
        click.UsageError: both were given and they differ.
    """
    if argument is not None and option is not None and argument != option:
        raise click.UsageError(
            f"two models, {argument!r} and --model {option!r}; give only one of them"
        )
    return argument if argument is not None else option
