"""`hotcold bench batch`: decode speed by the number of sequences, beside other programs."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from hotcold.actors.cli.bench.rivals import rival_option, rivals_of
from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import count_option, engine_options, json_option, option
from hotcold.actors.cli.common.running import running_engine
from hotcold.native.errors import ConfigError
from hotcold.runtime.bench.nested import found
from hotcold.runtime.options.config import SAMPLING, EngineConfig

HEADERS = ("sequences", "tokens/s", "each", "neurons read", "of the bound")


@click.command("batch")
@count_option(
    *("--count", "Sequences at once; may be repeated.  [default: 1 2 4 8 16 32]", 1, 32),
    into="counts",
)
@option(SAMPLING["max_tokens"], low=8)
@count_option("--repeat", "Rounds measured of each.", 1, 1000, 3)
@rival_option("transformers, and llama.cpp where it is installed")
@json_option
@engine_options("bench batch")
def command(
    options: EngineConfig,
    counts: tuple[int, ...],
    max_tokens: int,
    repeat: int,
    rivals: tuple[str, ...],
) -> None:
    """Decode tokens/s of some sequences together, beside other programs.

    tokens/s: of all sequences, the prompts left out; medians over the rounds, in which the programs
    take turns. neurons read: bytes of neurons that a pass reads for all sequences, over those of
    all neurons. bound: of `hotcold roofline` for as many sequences, by independent tokens.
    """
    from hotcold.actors.bench.batch import COUNTS, measure
    from hotcold.runtime.model.checkpoints.bundle import resolve_model

    model = None if options.model is None else Path(options.model)
    bundle = resolve_model(model, options.dtype)
    names = rivals or ("transformers", *(["llama.cpp"] if find_spec("llama_cpp") else []))
    wanted = sorted({1, *(counts or COUNTS)})
    with TemporaryDirectory(prefix="hotcold-") as folder:
        others = rivals_of(names, bundle, Path(folder))
        most, why = allowed(options, wanted[-1])
        taken = [count for count in wanted if count <= most]
        with running_engine(options, sequences=most, prefix_cache=False) as engine:
            rows = measure(
                *(engine, bundle, taken, max_tokens, repeat, others),
                lambda text: output.note(f"bench batch: {text}"),
            )
    click.echo(table_of(rows))
    output.note_wrong_bound("bench batch", [row["native"]["bound_fraction"] for row in rows])
    left_out = {str(count): why for count in wanted if count > most}
    if left_out:
        output.note(f"bench batch: left out {', '.join(left_out)}: {why}")
    output.emit_json({"rows": rows, "left_out": left_out, "rounds": repeat})


def allowed(options: EngineConfig, most: int) -> tuple[int, str]:
    """How many sequences an engine runs at once, at most that many, and why not more."""
    from hotcold.runtime.engine.prepare import prepare_model

    try:
        prepare_model(replace(options, sequences=most))
    except ConfigError as error:
        prepare_model(options)  # what is wrong whatever their number is said by this
        return options.sequences, str(error)
    return most, ""


def table_of(rows: list[dict[str, Any]]) -> str:
    """A line for each count of sequences, a column for each program."""
    key = "decode_tokens_per_s"
    rivals = dict(rows[0])
    rivals.pop("native")
    others = [name for name, _ in found(rivals, key)]
    lines = []
    for row in rows:
        native, rates = row["native"], dict(found(row, key))
        lines.append((
            str(row["sequences"]),
            f"{native[key]:.1f}",
            f"{native['decode_tokens_per_s_each']:.1f}",
            output.percent(native["union_density"]),
            output.of_bound(native["bound_fraction"]),
            *(f"{rates[name][key]:.1f}" for name in others),
        ))  # fmt: skip
    return output.table((*HEADERS, *(" ".join(name) for name in others)), lines)
