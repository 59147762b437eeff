"""`hotcold convert`: a checkpoint's bundle, in the cache or in a folder of one's own."""

from contextlib import nullcontext
from pathlib import Path

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, out_option
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.units import format_bytes


@click.command("convert")
@out_option("Folder to make; must be empty or not there.  [default: in the cache]", required=False)
@json_option
@engine_options("convert", argument=True)
def command(options: EngineConfig, out: Path | None) -> None:
    """Convert MODEL, a checkpoint, once and for all; commands that run it then find the bundle.

    `--dtype int8` quantises the neurons: whole numbers and a float16 scale for each 64 weights of
    a row. Attention, embedding and head stay as they are stored. A bundle in a folder of its own
    (`--out`) is a model: it can be moved and be given as MODEL.
    """
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
