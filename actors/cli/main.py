"""The console script: finds the command, and turns each way it can end into an exit code.

0 done; 1 failed; 2 input or usage that cannot be used; 130 interrupted; 143 terminated. A failure
leaves exactly one line on standard error, and a traceback only with --debug.
"""

import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.commands import COMMANDS, version
from hotcold.actors.cli.common.running import Terminated
from hotcold.actors.cli.common.state import State
from hotcold.native.errors import HotcoldError

INTERRUPTED = 130
TERMINATED = 143


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module imported, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"hotcold.actors.cli.{COMMANDS[cmd_name][0]}")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101 - invariant of this package
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command list of --help, from the table above, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(version(), message="hotcold %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run a language model of mostly silent neurons on a GPU and a CPU together.

    The first thing to try: hotcold generate "Once upon a time"
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; without `argv` the process's arguments."""
    state = State(words=tuple(sys.argv[1:] if argv is None else argv))
    try:
        _prepare_streams()
        _never_fail_on_characters()
        _show_progress_lines()
        code = _run(argv, state)
        sys.stdout.flush()
    except Exception as problem:
        if state.debug:
            with suppress(OSError):
                traceback.print_exc()
        code = _report(problem, state)
    try:
        sys.stderr.flush()
    except OSError:
        _forget(2)
    return code


class OutputLost(OSError):
    """Standard output cannot be written; a BrokenPipeError where its reader has left."""


class _Output(io.FileIO):
    """Standard output that says so when it cannot be written, and then leads nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            _forget(1)
            raise
        except OSError as error:
            _forget(1)
            raise OutputLost(f"standard output cannot be written: {error.strerror}") from error


def _prepare_streams() -> None:
    """Tell errors of standard output from others, and fill the place of closed streams.

    Else a file that is opened later takes their number.

    Raises:
        OutputLost: standard output is closed.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:  # standard input then fails when it is read
        number = ("stdin", "stdout", "stderr").index(name)
        _forget(number)
        setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    if "stdout" in closed:
        raise OutputLost("standard output is closed; send it to a file, or to /dev/null")
    there = sys.__stdout__
    if there is not None and there is sys.stdout:
        there.flush()
        raw = io.BufferedWriter(_Output(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(raw, there.encoding, line_buffering=there.isatty())


def _forget(number: int) -> None:
    """Let a stream lead nowhere, so that the interpreter's flush at its end is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _show_progress_lines() -> None:
    """What hotcold's modules log (a conversion under way, say) goes to standard error."""
    logger = logging.getLogger("hotcold")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("hotcold: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _run(argv: Sequence[str] | None, state: State) -> int:
    args = None if argv is None else list(argv)
    try:
        result: Any = cli.main(args=args, prog_name="hotcold", standalone_mode=False, obj=state)
    except (click.Abort, KeyboardInterrupt):
        output.note("hotcold: interrupted")
        return INTERRUPTED
    except SystemExit:  # click's answer where nobody reads standard output
        return 1
    except Terminated:
        output.note("hotcold: terminated")
        return TERMINATED
    return result if isinstance(result, int) else 0


def _report(problem: Exception, state: State) -> int:
    """Print the one line of a failure and say which exit code it has."""
    if isinstance(problem, BrokenPipeError):
        return 1
    if isinstance(problem, OutputLost):
        output.error(str(problem))
        return 1
    if isinstance(problem, click.ClickException):
        output.error(_usage(problem))
        return 2
    if isinstance(problem, HotcoldError):
        output.error(str(problem))
        return problem.exit_code
    hint = "" if state.debug else " (run with --debug for the traceback)"
    # Ray puts a remote traceback into the message; what went wrong is its last line.
    said = (str(problem).strip().splitlines() or ["no message"])[-1]
    output.error(f"{type(problem).__name__}: {said}{hint}")
    return 1


def _usage(problem: click.ClickException) -> str:
    context = getattr(problem, "ctx", None)
    text = problem.format_message().rstrip(".")
    return f"{text}; see '{context.command_path} --help'" if context is not None else text


def _never_fail_on_characters() -> None:
    """Let a terminal that is not UTF-8 show '?' instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
