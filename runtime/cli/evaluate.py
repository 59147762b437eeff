"""`hotcold evaluate`: perplexity, recall and speed of a predictor, plan or dtype, over text."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.options import (
    PREDICTOR_HELP,
    EngineOptions,
    choose_model,
    engine_options,
    json_option,
)

if TYPE_CHECKING:
    from hotcold.runtime.config import EngineConfig
    from hotcold.runtime.evaluate import Evaluation

CONTEXT = 512
SORTS = ("speed", "bytes", "recall", "density", "perplexity")


@click.command("evaluate")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text to measure on, in UTF-8; may be repeated.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=2),
    default=8192,
    show_default=True,
    help="Tokens, in windows spread over the texts.",
)
@click.option(
    "--decode",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="Tokens generated to measure speed; 0: no speed.",
)
@click.option(
    "--predictor",
    "predictors",
    multiple=True,
    metavar="KIND",
    help=f"{PREDICTOR_HELP} Given more than once, or as `all`: a table of them.  [default: auto]",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="speed",
    show_default=True,
    help="Column the table is sorted by, the best first.",
)
@json_option
@engine_options(predictor=False)
def command(
    folder: str | None,
    texts: tuple[Path, ...],
    max_tokens: int,
    decode: int,
    predictors: tuple[str, ...],
    sort: str,
    options: EngineOptions,
    as_json: bool,
) -> None:
    """Compare MODEL under the given predictor, plan and dtype with the dense checkpoint.

    Runs in this process, without Ray. The windows are the same for every setting, so results of
    two calls on the same texts can be compared. With `--predictor all`, every installed predictor
    that the model has the data for; a `--set predictor.NAME=VALUE` goes to those that know it.
    """
    model = choose_model(folder, options.model)
    if len(predictors) > 1 or predictors == ("all",):
        config = engine_config(options, model)
        click.echo(
            "\n".join(_table(config, predictors, (texts, max_tokens, decode), sort, as_json))
        )
        return
    options = replace(options, predictor=predictors[0] if predictors else "auto")
    result = measure(engine_config(options, model), texts, max_tokens, decode)
    click.echo(summary(result))
    if as_json:
        output.emit_json(as_json_keys(result))


def engine_config(options: EngineOptions, model: str | None) -> "EngineConfig":
    """The options as a configuration for a session in this process."""
    from hotcold.runtime.config import EngineConfig

    given: dict[str, Any] = options.launch_arguments()
    given.pop("address", None)
    given["transport"] = "native"
    return EngineConfig(**{**given, "model": model})


def measure(
    config: "EngineConfig", texts: tuple[Path, ...], max_tokens: int, decode: int
) -> "Evaluation":
    """Run the evaluation with a progress line."""
    return measure_all([config], texts, max_tokens, decode)[0]


def measure_all(
    configs: Sequence["EngineConfig"], texts: tuple[Path, ...], max_tokens: int, decode: int
) -> list["Evaluation"]:
    """Run the evaluation of several configurations of one model with a progress line."""
    from hotcold.runtime.evaluate import evaluate_all
    from hotcold.runtime.formats.bundle import resolve_model
    from hotcold.runtime.tokenizer import Tokenizer
    from hotcold.runtime.windows import spread_windows

    config = configs[0]
    bundle = resolve_model(None if config.model is None else Path(config.model), config.dtype)
    context = min(config.context or CONTEXT, bundle.spec.max_context)
    windows = spread_windows(list(texts), Tokenizer.load(bundle.path), context, max_tokens)
    progress = output.Progress("evaluating", "tokens")
    try:
        held = [replace(one, context=context) for one in configs]
        return evaluate_all(held, windows, decode, progress)
    finally:
        progress.close()


def _table(
    config: "EngineConfig",
    predictors: tuple[str, ...],
    how: tuple[tuple[Path, ...], int, int],
    sort: str,
    as_json: bool,
) -> list[str]:
    """Lines that rank predictors, the JSON line last where it was asked for."""
    from hotcold.runtime.ranking import candidates

    chosen, left_out = candidates(config, predictors)
    for name, why in left_out.items():
        output.note(f"hotcold: predictor '{name}' left out: {why}")
    results = measure_all(list(chosen.values()), *how)
    runs = sorted(zip(chosen, results, strict=True), key=lambda run: _rank(run[1], sort))
    dense = results[0]
    columns = ("predictor", "recall", "precision", "density", "MB/token", "tokens/s", "perplexity")
    fired = output.percent(_fired(dense))
    lines = [
        output.table(columns, [(name, *_row(result)) for name, result in runs]),
        f"over {output.count(dense.tokens)} tokens; {fired} of neurons fire;"
        f" perplexity as a multiple of the dense model's {dense.perplexity_dense:.3f}",
    ]
    if as_json:
        rows = [{**as_json_keys(result), "predictor": name} for name, result in runs]
        lines.append(output.json_line({"runs": rows, "left_out": left_out}))
    return lines


def _row(result: "Evaluation") -> tuple[str, ...]:
    shares = (result.audit.recall, result.audit.precision, result.audit.density)
    measured = math.isfinite(result.decode_tokens_per_s)
    return (
        *(output.percent(share) for share in shares),
        f"{result.bytes_per_token / 1e6:.2f}" if measured else "-",
        f"{result.decode_tokens_per_s:.0f}" if measured else "-",
        f"{result.ratio:.4f}",
    )


def _rank(result: "Evaluation", sort: str) -> float:
    """Ascending, the best first; what was not measured comes after what was."""
    value = {
        "speed": -result.decode_tokens_per_s,
        "bytes": result.bytes_per_token,
        "recall": -result.audit.recall,
        "density": result.audit.density,
        "perplexity": result.ratio,
    }[sort]
    return value if math.isfinite(value) else math.inf


def _fired(result: "Evaluation") -> float:
    return result.audit.fired / max(1, result.audit.total)


def as_json_keys(result: "Evaluation") -> dict[str, Any]:
    """The evaluation under its public keys."""
    return {
        "tokens": result.tokens,
        "predictor": result.predictor,
        "perplexity": result.perplexity,
        "perplexity_dense": result.perplexity_dense,
        "perplexity_ratio": result.ratio,
        "agreement": result.agreement,
        "kl_nats": result.kl,
        "recall": result.audit.recall,
        "recall_standard_error": result.recall_standard_error,
        "precision": result.audit.precision,
        "density": result.audit.density,
        "density_fired": _fired(result),
        "decode_tokens_per_s": result.decode_tokens_per_s,
        "bytes_per_token": result.bytes_per_token,
        "ffn_bytes_per_token": {
            "exact": result.ffn_bytes.exact,
            "learned": result.ffn_bytes.learned,
            "learned_gate_first": result.ffn_bytes.gate_first,
        },
    }


def summary(result: "Evaluation") -> str:
    """The evaluation for people."""
    error = result.recall_standard_error
    spread = f" +- {100 * error:.2f}" if math.isfinite(error) else ""
    return "\n".join(
        [
            f"predictor   {result.predictor}",
            f"perplexity  {result.perplexity:.3f}, dense {result.perplexity_dense:.3f}: "
            f"{result.ratio:.4f}x over {output.count(result.tokens)} tokens",
            f"next token  {output.percent(result.agreement)} as the dense model's, "
            f"KL {result.kl:.4f} nats",
            f"recall      {100 * result.audit.recall:.2f}{spread} %, precision "
            f"{output.percent(result.audit.precision)}",
            f"density     {output.percent(result.audit.density)} proposed, "
            f"{output.percent(_fired(result))} fired",
            f"decode      {result.decode_tokens_per_s:.1f} tokens/s, "
            f"{result.bytes_per_token / 1e6:.1f} MB a token",
            f"feed-forward weights a token  {result.ffn_bytes}",
        ]
    )
