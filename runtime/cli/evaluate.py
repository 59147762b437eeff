"""`hotcold evaluate`: perplexity, recall and speed of a predictor, plan or dtype, over text."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.options import EngineOptions, choose_model, engine_options, json_option

if TYPE_CHECKING:
    from hotcold.runtime.config import EngineConfig
    from hotcold.runtime.evaluate import Evaluation

CONTEXT = 512


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
@json_option
@engine_options()
def command(
    folder: str | None,
    texts: tuple[Path, ...],
    max_tokens: int,
    decode: int,
    options: EngineOptions,
    as_json: bool,
) -> None:
    """Compare MODEL under the given predictor, plan and dtype with the dense checkpoint.

    Runs in this process, without Ray. The windows are the same for every setting, so results of
    two calls on the same texts can be compared.
    """
    config = engine_config(options, choose_model(folder, options.model))
    result = measure(config, texts, max_tokens, decode)
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
    from dataclasses import replace

    from hotcold.runtime.evaluate import evaluate
    from hotcold.runtime.formats.bundle import resolve_model
    from hotcold.runtime.tokenizer import Tokenizer
    from hotcold.runtime.windows import spread_windows

    bundle = resolve_model(None if config.model is None else Path(config.model), config.dtype)
    context = min(config.context or CONTEXT, bundle.spec.max_context)
    windows = spread_windows(list(texts), Tokenizer.load(bundle.path), context, max_tokens)
    progress = output.Progress("evaluating", "tokens")
    try:
        return evaluate(replace(config, context=context), windows, decode, progress)
    finally:
        progress.close()


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
        "density_fired": result.audit.fired / max(1, result.audit.total),
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
            f"{output.percent(result.audit.fired / max(1, result.audit.total))} fired",
            f"decode      {result.decode_tokens_per_s:.1f} tokens/s, "
            f"{result.bytes_per_token / 1e6:.1f} MB a token",
            f"feed-forward weights a token  {result.ffn_bytes}",
        ]
    )
