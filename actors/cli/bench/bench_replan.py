"""`hotcold bench replan`: the gap that a new plan leaves between tokens."""

from functools import partial

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import count_option, engine_options, json_option, option
from hotcold.actors.cli.common.running import running_engine
from hotcold.runtime.options.config import SAMPLING, EngineConfig


@click.command("replan")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Share of all neurons that change their device.",
)
@click.option(
    "--rate",
    metavar="SIZE",
    default="256MiB",
    show_default=True,
    help="Bytes of neuron records a second, where neurons are moved.",
)
@option(SAMPLING["max_tokens"], low=16)
@count_option("--repeat", "Rounds measured.", 1, 1000, 3)
@json_option
@engine_options("bench replan")
def command(options: EngineConfig, share: float, rate: str, max_tokens: int, repeat: int) -> None:
    """Replan while tokens run: the longest gap between two, and tokens/s before, meanwhile, after.

    The plans are the hottest neurons on the GPU, and that with a share of the neurons swapped.
    fresh: an engine launched with the second plan. Where executors cannot move neurons (a GPU, a
    schedule that fetches) the gap is that of loading the plan anew.
    """
    from hotcold.actors.bench.replan import measure

    launch = partial(running_engine, options, prefix_cache=False, plan=None)
    result = measure(launch, share, rate, max_tokens, repeat)
    rates = result["tokens_per_s"]
    click.echo(
        f"{output.count(result['neurons'], 'neuron')} moved in {result['replan_s']:.3f} s, "
        f"{result['versions']} versions"
    )
    click.echo(
        f"longest gap between tokens {result['longest_gap_ms']:.1f} ms; without a replan "
        f"{result['longest_gap_undisturbed_ms']:.1f}"
    )
    click.echo(
        "tokens/s: "
        + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
        + ("" if result["same_tokens"] else "; TOKENS DIFFER")
    )
    output.emit_json(result)
