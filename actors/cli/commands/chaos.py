"""`hotcold chaos`: actors killed and stopped at random steps; the tokens must not show it."""

from dataclasses import replace

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import count_option, engine_options, json_option
from hotcold.runtime.options.config import EngineConfig

STUCK_S = 1.0  # short, so that a stopped actor is found quickly
RESTARTS = 100


@click.command("chaos")
@count_option("--runs", "Runs, each of one generation or several.", 1, 1_000_000, 20)
@json_option
@engine_options("chaos")
def command(options: EngineConfig, runs: int) -> None:
    """Kill, stop and replan actors at random during generations, and count what went wrong.

    --seed decides which, and when. Each run has up to --sequences generations at once, and more
    that join and leave. The exit code is 1 if a generation hung, failed or had wrong
    tokens, or if anything leaked: processes, threads, memory, descriptors, sockets, files, GPU
    memory.
    """
    from hotcold.actors.bench import chaos
    from hotcold.actors.cluster import ray_cluster as cluster
    from hotcold.actors.engine.engine import Engine

    arguments = vars(replace(options, stuck_s=STUCK_S, restarts=RESTARTS))
    with cluster.joined(options.address):
        tally = chaos.run(lambda: Engine.launch(**arguments), runs, options.seed, output.note)
    result = tally.to_json()
    rows = [
        (name, "" if value is None else f"{value:.4g}")
        for name, value in result.items()
        if name not in ("slowest", "complaints")
    ]
    click.echo(output.table(("chaos", "count"), rows))
    output.emit_json(result)
    if tally.slowest:
        output.note(f"slowest: {tally.slowest}")
    for complaint in tally.complaints:
        output.note(complaint)
    if not tally.is_clean:
        raise click.exceptions.Exit(1)
