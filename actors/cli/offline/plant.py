"""`hotcold plant`: a model of planted sparsity at the real shape of a published one."""

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    debug_option,
    device_option,
    json_option,
    out_option,
    table_options,
)
from hotcold.runtime.offline.plant.options import PlantOptions
from hotcold.runtime.offline.plant.shapes import NOTES, SHAPES

# plant.making's; torch is not loaded for --help
FORMS = ("bundle", "hf", "gguf", "powerinfer-gguf")


def _shapes() -> str:
    """The table of shapes for --help."""
    rows = [
        (
            name,
            str(shape.layers),
            str(shape.d_model),
            str(shape.neurons),
            f"{shape.density:.0%}",
            f"{shape.share80:.0%}",
            f"{shape.quiet:.0%}",
        )
        for name, shape in SHAPES.items()
    ]
    head = ("shape", "layers", "width", "neurons", "density", "share80", "quiet")
    return "\b\nShapes, and what they have unless told otherwise:\n" + output.table(head, rows)


@click.command("plant", epilog=f"{_shapes()}\n\n{NOTES}")
@click.argument("shape", type=click.Choice(list(SHAPES)), metavar="SHAPE")
@out_option("Folder to make; must be empty or not there.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMS),
    help="What to write: a bundle, a Hugging Face folder, GGUF for llama.cpp, or PowerInfer's GGUF"
    " and activation counts.  [default: bundle]",
)
@click.option("--hf", is_flag=True, help="The same as --format hf.")
@table_options(PlantOptions)
@device_option("Where the weights are drawn.")
@json_option
@debug_option
def command(
    shape: str,
    out: Path,
    form: str | None,
    hf: bool,
    device: str,
    **given: Any,  # noqa: ANN401 - as click parsed them
) -> None:
    """Plant a model: random weights of a real SHAPE whose neurons fire as real ones do.

    Writes weights, a tokenizer, the activation profile, and predictors that are exact unless
    --recall or --precision say otherwise. A planted model generates no sensible text; it is for
    measuring speed, placement and prediction where no trained checkpoint is available.
    """
    from hotcold.actors.cli.common.running import StopSignals
    from hotcold.runtime.offline.plant.making import plant

    if hf and form not in (None, "hf"):
        raise click.UsageError(f"--hf and --format {form} exclude each other; give one of them")
    options = PlantOptions(shape, **given)
    # SIGTERM, too, removes what is half-written.
    with StopSignals(), closing(output.Progress("planting", "layer")) as progress:
        report = plant(
            options,
            out,
            form=form or ("hf" if hf else "bundle"),
            device=device,
            progress=lambda done, total: progress(done, done / total),
        )
    click.echo(
        f"{shape}: {report.spec.n_layers} layers, {report.weights_bytes / 1e9:.2f} GB in {out} "
        f"({report.seconds:.1f} s)"
    )
    click.echo(
        f"over {output.count(report.tokens)} tokens: {output.percent(report.density)} of the "
        f"neurons fire, {output.percent(report.share80)} of a layer's neurons hold 80 % of its "
        f"activations; predictor recall {output.percent(report.recall)}, precision "
        f"{output.percent(report.precision)}"
    )
    data = {k: v for k, v in vars(report).items() if k not in ("path", "spec")}
    output.emit_json({"path": str(report.path), "spec": report.spec.to_json(), **data})
