"""`hotcold convert`: a checkpoint's bundle, in the cache or in a folder of one's own."""

from contextlib import nullcontext
from pathlib import Path

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, out_option
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.units import format_bytes

FORMS = ("bundle", "gguf", "powerinfer-gguf")


def _export(options: EngineConfig, out: Path | None, form: str, plan_path: Path | None) -> None:
    from hotcold.actors.cli.common.running import StopSignals
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.plan.plan import Plan
    from hotcold.runtime.predictors.powerinfer_files import export_gguf

    if out is None:
        raise click.UsageError(f"--to {form} needs --out, the folder to make")
    bundle = resolve_model(options.model, options.dtype)
    plan = None if plan_path is None else Plan.load(plan_path)
    with StopSignals():  # nothing half-written stays
        files = export_gguf(bundle, out, form == FORMS[2], plan)
    for path in files:
        click.echo(f"{path}: {format_bytes(path.stat().st_size)}")
    output.emit_json({"files": [str(path) for path in files]})


@click.command("convert")
@out_option("Folder to make; must be empty or not there.  [default: in the cache]", required=False)
@click.option(
    "--to",
    "form",
    type=click.Choice(FORMS),
    default=FORMS[0],
    help="What to write: a bundle, or files of llama.cpp or PowerInfer (these need --out)."
    "  [default: bundle]",
)
@click.option(
    "--index",
    "plan_path",
    metavar="PLAN",
    type=click.Path(path_type=Path),
    help="A plan of `hotcold solve`: PowerInfer's index of the GPU's neurons is written, too.",
)
@json_option
@engine_options("convert", argument=True)
def command(options: EngineConfig, out: Path | None, form: str, plan_path: Path | None) -> None:
    """Convert MODEL, a checkpoint, once and for all; commands that run it then find the bundle.

    `--dtype int8` quantises the neurons: whole numbers and a float16 scale for each 64 weights of
    a row. Attention, embedding and head stay as they are stored. A bundle in a folder of its own
    (`--out`) is a model: it can be moved and be given as MODEL.

    `--to gguf` writes model.gguf for llama.cpp, `--to powerinfer-gguf` what PowerInfer needs:
    weights with predictors, activation counts, and with --index the neurons of the GPU.
    """
    if plan_path is not None and form != FORMS[2]:
        raise click.UsageError(f"--index goes with --to {FORMS[2]} alone")
    if form != FORMS[0]:
        _export(options, out, form, plan_path)
        return
    from hotcold.actors.cli.common.running import StopSignals
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.model.checkpoints.conversion import convert_into

    with StopSignals() if out is not None else nullcontext():  # nothing half-written stays
        if out is None:
            bundle = resolve_model(options.model, options.dtype)
        else:
            bundle = convert_into(out, options.model, options.dtype)
    spec = bundle.spec
    neurons = spec.n_layers * spec.n_neurons * bundle.record.bytes
    click.echo(
        f"{bundle.name}: {format_bytes(bundle.weights_bytes)}, neurons in {spec.neuron_format} "
        f"{format_bytes(neurons)}, the rest in {spec.dtype}"
    )
    click.echo(f"bundle {bundle.path}")
    output.emit_json(
        {
            "bundle": str(bundle.path),
            "checksum": bundle.checksum,
            "spec": spec.to_json(),
            "file_bytes": bundle.weights_bytes,
            "neuron_bytes": neurons,
        }
    )
