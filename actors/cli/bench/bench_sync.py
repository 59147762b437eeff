"""`hotcold bench sync`: what selective synchronisation leaves out, and what that saves."""

from typing import Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import count_option, engine_options, json_option, option
from hotcold.runtime.options.config import SAMPLING, EngineConfig


@click.command("sync")
@click.option(
    "--resident",
    type=click.FloatRange(0.5, 1.0, max_open=True),
    default=0.96,
    show_default=True,
    help="Share of a quiet layer's neurons on the GPU, the hottest.",
)
@option(SAMPLING["max_tokens"], low=8, high=100_000)
@count_option("--repeat", "Runs of each.", 1, 1000, 2)
@json_option
@engine_options("bench sync")
def command(options: EngineConfig, resident: float, max_tokens: int, repeat: int) -> None:
    """Exchanges left out as no cold neuron fired; time saved by each.

    One plan under the schedules paper (waits in every layer) and selective, in turn, without Ray. A
    model whose first layers hardly fire: hotcold plant llama-1b --quiet 0.5 --quiet-density 0.0008.
    Below it the same plan's arithmetic for the 13B shape, where nothing can be left out.
    """
    from hotcold.runtime.bench.sync import measure

    result = measure(
        options,
        *(resident, max_tokens, repeat),
        lambda text: output.note(f"bench sync: {text}"),
    )
    found = result["plan"]["quiet_resident"]
    if found < 0.99 * resident:
        output.note(
            f"bench sync: {found:.1%} of the quiet layers' neurons fit the budget, --resident asks "
            f"for {resident:.1%}; raise --vram"
        )
    for line in sync_lines(result):
        click.echo(line)
    output.emit_json(result)


def sync_lines(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    plan, big, left_out = result["plan"], result["llama2-13b"], result["selective"]
    rows = [
        (name, f"{result[name]['pass_us']:.1f}", f"{result[name]['skipped_per_token']:.2f}")
        for name in ("paper", "selective")
    ]
    each = result["saved_us_each"]
    worth = (
        "none was left out"
        if each is None
        else f"{each:.2f} us saved by each"
        if each > 0
        else "passes did not get shorter"
    )
    return [
        output.table(("schedule", "pass us", "exchanges left out a token"), rows),
        f"{left_out['skipped_per_token']:.2f} of {plan['layers_with_exchange']} exchanges per "
        f"token left out, {plan['expected_skipped_per_token']:.2f} expected from the profile; "
        f"{worth}",
        f"{plan['quiet_layers']} of {plan['layers']} layers are quiet: at most "
        f"{plan['quiet_firing']:.3%} of their neurons fire, {plan['quiet_resident']:.1%} of them "
        "are on the GPU",
        f"13B shape, 16 GiB, float16: {big['expected_skipped_per_token']:.2f} of "
        f"{big['layers_with_exchange']} expected; at least {big['fewest_cold_active']:.0f} cold "
        "neurons fire per token in every layer",
    ]
