"""`hotcold sparsity`: how sparse a model really is, layer by layer, as a table and a picture."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    device_option,
    engine_options,
    json_option,
    option,
    texts_option,
)
from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import DEFAULT_CONTEXT, ENGINE, EngineConfig

if TYPE_CHECKING:
    from hotcold.runtime.offline.profiling.sparsity import LayerSparsity

TOKENS = 2048
COLUMNS = ("layer", "fires", "5-95 %", "hot 80 %", "never", "of 8", "of 32", "1 %", "5 %", "10 %")


@click.command("sparsity")
@texts_option(
    "--text",
    "A text to run the model on, in UTF-8; .jsonl: a document a line. May be repeated.",
    into="texts",
    required=True,
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=32, max=1 << 20),
    default=TOKENS,
    show_default=True,
    help="Tokens to look at, taken from all over the text.",
)
@click.option(
    "--out",
    metavar="PNG",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also draw it, into this file (needs hotcold[pictures]).",
)
@option(ENGINE["context"], low=2, help="Tokens of a window.")
@device_option("Where to run the model.")
@json_option
@engine_options("sparsity", argument=True)
def command(
    options: EngineConfig,
    texts: tuple[Path, ...],
    max_tokens: int,
    out: Path | None,
    context: int | None,
    device: str,
) -> None:
    """Measure how many of MODEL's neurons fire for a token, and how many could be skipped.

    MODEL is a folder; without one, the embedded model. Of each layer: the share of neurons that
    fire, exactly, and the range that 90 % of the tokens lie in; the smallest part that makes 80 %
    of all activations; those that never fire; the part that batches of 8 and 32 independent tokens
    need; and the part that a threshold on |act(gate)| may leave out before the layer's output is
    off by 1, 5 or 10 %. Of a dense model (SiLU, GELU) all neurons fire: there "hot", "never" and
    batches are of the neurons above the threshold of 5 %.
    """
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.offline.pictures.draw import check_matplotlib
    from hotcold.runtime.text.tokenizer import Tokenizer
    from hotcold.runtime.text.windows import spread_windows

    if out is not None:
        check_matplotlib()
        if not out.absolute().parent.is_dir():
            raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it")
    bundle = resolve_model(options.model, options.dtype)
    length = context or min(bundle.spec.max_context, DEFAULT_CONTEXT)
    if length > bundle.spec.max_context:
        raise ConfigError(
            f"--context {length} is more than the {bundle.spec.max_context} positions this model "
            "was made for"
        )
    windows = spread_windows(list(texts), Tokenizer.load(bundle.path), length, max_tokens)

    from hotcold.runtime.offline.plant.making import find_device  # torch takes seconds to import
    from hotcold.runtime.offline.profiling.counting import choose_streamed
    from hotcold.runtime.offline.profiling.sparsity import measure_sparsity
    from hotcold.runtime.offline.training.dense import DenseModel
    from hotcold.runtime.weights.weights import WeightStore

    where = find_device(device)
    streamed = choose_streamed(bundle, where)
    with WeightStore.open(bundle) as store, closing(output.Progress("measuring", "layer")) as told:
        model = DenseModel(bundle, store, length, where, streamed)
        layers = measure_sparsity(model, windows, told)
    result = {
        "model": bundle.name,
        "activation": bundle.spec.activation,
        "tokens": sum(map(len, windows)),
        "fires": sum(layer.fires for layer in layers) / len(layers),
        "layers": [as_plain(layer) for layer in layers],
    }
    click.echo(table(layers))
    for line in summary(result, layers):
        click.echo(line)
    if out is not None:
        from hotcold.runtime.offline.pictures.draw import figure_png
        from hotcold.runtime.offline.pictures.sparse import draw_sparse

        try:
            out.write_bytes(figure_png(draw_sparse(result)))
        except OSError as error:
            raise ConfigError(
                f"--out {out} cannot be written ({error.strerror}); give a file you can write"
            ) from error
        output.note(f"picture in {out}")
    output.emit_json(result)


def as_plain(layer: "LayerSparsity") -> dict[str, Any]:
    """A layer as plain data; keys of numbers become words."""
    data = asdict(layer)
    keyed = ("union", "thresholds", "skipped")
    plain = {key: {f"{one:g}": value for one, value in data[key].items()} for key in keyed}
    return {**data, **plain}


def table(layers: "list[LayerSparsity]") -> str:
    """A row a layer."""
    shown = output.percent
    rows = [
        (
            str(index),
            shown(layer.fires),
            " - ".join(map(shown, layer.range90)),
            shown(layer.hot80),
            shown(layer.never),
            *(shown(layer.union[group]) if group in layer.union else "" for group in (8, 32)),
            *(shown(share) for share in layer.skipped.values()),
        )
        for index, layer in enumerate(layers)
    ]
    return output.table(COLUMNS, rows)


def summary(result: dict[str, Any], layers: "list[LayerSparsity]") -> list[str]:
    """What the table says, in words."""
    mean = {e: sum(one.skipped[e] for one in layers) / len(layers) for e in layers[0].skipped}
    off = ", ".join(f"{output.percent(share)} at {100 * e:g} %" for e, share in mean.items())
    dense = sum(layer.dense for layer in layers)
    said = f"{output.percent(result['fires'])} of the neurons fire for a token"
    if dense:
        said += f"; {dense} of {len(layers)} layers are dense: nothing of them is exactly zero"
    return [
        f"{said} ({result['activation']}, {result['tokens']} tokens)",
        f"a threshold on |act(gate)| may skip, by error of a layer's output: {off}",
    ]
