"""`hotcold plant`: a model of planted sparsity at the real shape of a published one."""

from pathlib import Path

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import DTYPES, debug_option, json_option
from hotcold.runtime.offline.plant.shapes import NOTES, SHAPES

DEVICES = ("auto", "cpu", "cuda")
FORMS = (
    "bundle",
    "hf",
    "gguf",
    "powerinfer-gguf",
)  # plant.making's; torch is not loaded for --help


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
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder to make; must be empty or not there.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMS),
    help="What to write: a bundle, a Hugging Face folder, GGUF for llama.cpp, or PowerInfer's GGUF"
    " and activation counts (both need the extra `rivals`).  [default: bundle]",
)
@click.option("--hf", is_flag=True, help="The same as --format hf.")
@click.option("--layers", type=click.IntRange(min=1), help="Only so many layers.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float16",
    show_default=True,
    help="Dtype of the matrices.",
)
@click.option(
    "--density", type=float, help="Share of neurons that fire.  [default: the shape's, see below]"
)
@click.option(
    "--share80",
    type=float,
    help="Share of a layer's neurons that hold 80 % of its activations.  [default: the shape's]",
)
@click.option(
    "--quiet", type=float, help="Share of the layers, from the first, that are nearly silent."
)
@click.option(
    "--quiet-density",
    type=float,
    default=0.005,
    show_default=True,
    help="Share of a quiet layer's neurons that fire.",
)
@click.option(
    "--variation",
    type=float,
    default=0.2,
    show_default=True,
    help="How much the other layers' densities rise from the first to the last.",
)
@click.option(
    "--recall",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of the fired neurons that the predictor proposes.",
)
@click.option(
    "--precision",
    type=float,
    default=1.0,
    show_default=True,
    help="Share of the proposed neurons that fire.",
)
@click.option(
    "--hidden", type=click.IntRange(min=1), help="Width of the predictor.  [default: 3/16 of d]"
)
@click.option(
    "--correlation",
    type=float,
    default=0.0,
    show_default=True,
    help="Correlation between a token's driving signal and the one before.",
)
@click.option(
    "--drift",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of the driving signal that turns slowly over thousands of tokens.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of everything drawn.",
)
@click.option(
    "--tokens", type=click.IntRange(128, 1 << 17), help="Calibration tokens.  [default: as cheap]"
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Where the weights are drawn.",
)
@json_option
@debug_option
def command(
    shape: str,
    out: Path,
    form: str | None,
    hf: bool,
    layers: int | None,
    dtype: str,
    density: float | None,
    share80: float | None,
    quiet: float | None,
    quiet_density: float,
    variation: float,
    recall: float,
    precision: float,
    hidden: int | None,
    correlation: float,
    drift: float,
    seed: int,
    tokens: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Plant a model: random weights of a real SHAPE whose neurons fire as real ones do.

    Writes weights, a tokenizer, the activation profile, and predictors that are exact unless
    --recall or --precision say otherwise. A planted model generates no sensible text; it is for
    measuring speed, placement and prediction where no trained checkpoint is available.
    """
    from hotcold.actors.cli.common.running import StopSignals
    from hotcold.runtime.offline.plant.making import plant
    from hotcold.runtime.offline.plant.options import PlantOptions

    if hf and form not in (None, "hf"):
        raise click.UsageError(f"--hf and --format {form} exclude each other; give one of them")
    options = PlantOptions(
        shape=shape,
        layers=layers,
        dtype=dtype,
        density=density,
        share80=share80,
        quiet=quiet,
        quiet_density=quiet_density,
        variation=variation,
        recall=recall,
        precision=precision,
        hidden=hidden,
        correlation=correlation,
        drift=drift,
        seed=seed,
        tokens=tokens,
    )
    progress = output.Progress("planting", "layers")
    signals = StopSignals()
    signals.install()  # so that SIGTERM, too, removes what is half-written
    try:
        report = plant(
            options,
            out,
            form=form or ("hf" if hf else "bundle"),
            device=device,
            progress=lambda done, total: progress(done, done / total),
        )
    finally:
        progress.close()
        signals.restore()
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
    if as_json:
        data = {k: v for k, v in vars(report).items() if k not in ("path", "spec")}
        output.emit_json({"path": str(report.path), "spec": report.spec.to_json(), **data})
