"""`hotcold serve`: an engine behind the OpenAI API, until Ctrl-C or SIGTERM."""

import os
import sys
from contextlib import redirect_stdout
from typing import Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, option, table_options
from hotcold.actors.cli.common.running import WORKER_DIED, StopSignals, Terminated, signal_inside
from hotcold.actors.serve.settings import ServeConfig
from hotcold.runtime.options.config import ENGINE, EngineConfig


@click.command("serve")
@table_options(ServeConfig)
@option(ENGINE["sequences"], default=None, shown="8; on a GPU 1")
@engine_options("serve", own=("sequences",), argument=True)
def command(options: EngineConfig, sequences: int | None, **given: Any) -> None:
    """Serve MODEL, a folder, over HTTP as the OpenAI API has it; without one, the embedded model.

    Clients use http://127.0.0.1:8000/v1. Ctrl-C or SIGTERM: requests that run end, no others begin;
    once more: all end at once.
    """
    settings = ServeConfig(**given)
    # Ray prints such lines when we end Ray Serve; it reads this when it is imported.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", f"{WORKER_DIED}|Task ServeController")
    from hotcold.actors.serve import server

    server.check_installed()
    shown = sys.stdout

    def say(line: str) -> None:
        click.echo(line, file=shown)
        shown.flush()

    with StopSignals() as signals, redirect_stdout(sys.stderr), signal_inside():

        def ending() -> None:
            signals.install()  # HTTP had its own
            signals.close()

        try:
            server.run(options, settings, sequences, say, signals.install, ending)
        except SystemExit as stop:
            raise Terminated from stop
    output.note("hotcold: ended")
