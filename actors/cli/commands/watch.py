"""`hotcold watch`: what a running engine does, in the terminal."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import debug_option, json_option
from hotcold.native.errors import ConfigError

if TYPE_CHECKING:
    from hotcold.actors.telemetry.following import Follower

FIRST_S, EVERY_S, WINDOW_S = 5.0, 1.0, 1.2
SHOW, HIDE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, without a cursor


@click.command("watch")
@click.argument("engine", required=False)
@click.option("--once", is_flag=True, help="Print one view and end.")
@click.option("--address", metavar="HOST:PORT", help="Ray cluster that the engine is in.")
@json_option
@debug_option
def command(engine: str | None, once: bool, address: str | None) -> None:
    """Show a running engine: tokens/s, load by device and layer, waits, recall, recoveries.

    ENGINE is its name in the Ray cluster, or the address at which it publishes, such as
    tcp://127.0.0.1:5599 (then Ray is not needed). Without one, the only engine of the cluster.
    Ctrl-C ends. With --json a line a second, or one with --once.
    """
    from hotcold.actors.telemetry.following import Follower

    with _addresses(engine, address) as addresses, Follower(addresses) as follower:
        if not _first(follower):
            raise ConfigError(
                f"nothing was heard of {engine or 'the engine'} in {FIRST_S:g} s; look whether it "
                "runs and publishes there"
            )
        try:
            _show(follower, once)
        except KeyboardInterrupt:  # how one leaves
            return


@contextmanager
def _addresses(engine: str | None, address: str | None) -> Iterator[Callable[[], Sequence[str]]]:
    if engine is not None and "://" in engine:
        if address is not None:
            raise ConfigError(f"{engine} needs no Ray cluster; leave out --address")
        given = [engine]
        yield lambda: given
        return
    from hotcold.actors.cluster import ray_cluster
    from hotcold.actors.telemetry.following import addresses_of, running_names

    ray_cluster.join(address, start=False)
    if engine is None:
        names = running_names()
        if len(names) != 1:
            found = f"the engines {', '.join(names)}: name one" if names else "no engine"
            raise ConfigError(f"this Ray cluster has {found}")
        engine = names[0]
    name = engine
    yield lambda: addresses_of(name)


def _first(follower: "Follower") -> bool:
    deadline = time.monotonic() + FIRST_S
    while time.monotonic() < deadline:
        if follower.update(0.2) and follower.view.leader is not None:
            return True
    return False


def _show(follower: "Follower", once: bool) -> None:
    live = not once and not output.as_json() and sys.stdout.isatty()
    live = live and os.environ.get("TERM", "dumb") != "dumb"
    if live:
        click.echo(SHOW, nl=False, color=True)
    try:
        while True:
            follower.update(WINDOW_S if once else EVERY_S)
            seen = follower.view.snapshot()
            output.emit_json(seen)
            if not output.as_json():
                _print(seen, live)
            if once:
                return
    finally:
        if live:
            click.echo(HIDE, nl=False, color=True)
            sys.stdout.flush()


def _print(seen: dict[str, Any], live: bool) -> None:
    from hotcold.actors.telemetry.terminal import lines, plain

    size = shutil.get_terminal_size((output.WIDTH, 40))
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    made = lines(seen, size.columns, _coloured if colours else plain)
    if live and len(made) > size.lines - 1:
        left = len(made) - size.lines + 2
        made = [*made[: size.lines - 2], f"... {left} more lines; --once shows all"]
    if live:
        click.echo("\x1b[H" + "\x1b[K\n".join(made) + "\x1b[J", nl=False, color=True)
    else:
        click.echo("\n".join(made) + "\n")
    sys.stdout.flush()


def _coloured(text: str, colour: str) -> str:
    return click.style(text, fg=colour) if text else text
