"""`hotcold generate --prompts FILE`: a line of JSON for each prompt as it is finished."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.running import running_engine
from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import DEFAULT_CONTEXT, EngineConfig, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotcold.actors import Completion, Engine, Token
    from hotcold.runtime.text.generation import TextCodec
    from hotcold.runtime.text.prompts import Line

MAX_FILE_BYTES = 256 << 20
HELP = (
    "Continue the prompts of a file: one a line, or JSON lines with prompt and sampling options of "
    "their own; - is standard input."
)


def generate_all(options: EngineConfig, file: str, sampling: Sampling) -> None:
    """Continue a file's prompts; what it holds is checked before anything starts."""
    from hotcold.runtime.text.prompts import asked_of, lines_of

    name = "standard input" if file == "-" else file
    lines = lines_of(_read(file, name), name)
    codec, context = codec_of(options)
    asked_of(
        [line.given for line in lines],
        sampling,
        lambda prompt, own: codec.check(prompt, context, own.special),
        lambda index: f"line {lines[index].number} of {name}",
    )
    shown = sys.stdout
    with running_engine(options) as engine:
        totals = _print_all(engine, lines, sampling, shown)
    made = output.count(totals["new_tokens"], "token")
    output.note(
        f"{output.count(totals['prompts'], 'prompt')}: {made} in {totals['wall_s']:.2f} s, "
        f"{totals['tokens_per_s']:.1f} tokens/s, {totals['sequences']} at a time"
    )
    output.emit_json(totals)


def _print_all(
    engine: "Engine", lines: "list[Line]", sampling: Sampling, shown: TextIO
) -> dict[str, Any]:
    progress = output.Progress("generating", "prompt")
    given = made = reused = 0
    began = time.monotonic()
    try:
        results = engine.generate_many([line.given for line in lines], sampling)
        for done, one in enumerate(results, start=1):
            click.echo(json.dumps(_shown(one)), file=shown)
            given += one.stats.prompt_tokens
            reused += one.stats.reused_tokens
            made += one.stats.new_tokens
            progress(done, done / len(lines))
    finally:
        progress.close()
    wall_s = time.monotonic() - began
    return {
        "prompts": len(lines),
        "prompt_tokens": given,
        "reused_tokens": reused,
        "new_tokens": made,
        "wall_s": wall_s,
        "tokens_per_s": made / wall_s,
        "sequences": engine.sequences,
    }


def _shown(one: "Completion") -> dict[str, Any]:
    keys = ("index", "text", "token_ids", "finish_reason")
    line = {key: getattr(one, key) for key in keys}
    return line | logprobs_of(one.tokens)


def logprobs_of(tokens: "Sequence[Token]") -> dict[str, Any]:
    """An entry of each token with its alternatives, where these were asked for."""
    if not any(token.top for token in tokens):
        return {}
    entries = [{"id": one.id, "logprob": one.logprob, "top": one.top} for one in tokens]
    return {"logprobs": entries}


def codec_of(options: EngineConfig) -> "tuple[TextCodec, int]":
    """What makes tokens of texts for a model, and the positions that its context will have.

    Raises:
        CheckpointError: a model that cannot be used.
    """
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.text.generation import TextCodec

    bundle = resolve_model(None if options.model is None else Path(options.model), options.dtype)
    context = options.context or min(bundle.spec.max_context, DEFAULT_CONTEXT)
    return TextCodec(bundle.path, bundle.spec), context


def _read(file: str, name: str) -> bytes:
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with open(file, "rb") as opened:
                raw = opened.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise ConfigError(
            f"--prompts {file} cannot be read ({problem.strerror or problem}); give a text file"
        ) from problem
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{name} has more than {MAX_FILE_BYTES} bytes; give it in parts")
    return raw
