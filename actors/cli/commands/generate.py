"""`hotcold generate`: text from a prompt as it is generated, then what each actor did for it."""

import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

import click

from hotcold.actors.cli.commands import prompts as many
from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, option, table_options
from hotcold.actors.cli.common.running import figures, running_engine
from hotcold.native.errors import ConfigError, LaunchError
from hotcold.native.options.table import Option
from hotcold.runtime.options.config import EngineConfig, Sampling

if TYPE_CHECKING:
    from hotcold.actors import Engine, Token

MAX_PROMPT_BYTES = 16 << 20


@click.command("generate")
@click.argument("prompt", required=False)
@option(Option(None, many.HELP, "prompts", metavar="FILE"))
@click.option(
    "--chat",
    is_flag=True,
    help="Put PROMPT into the model's chat template; without one, every line of standard input is "
    "a turn of one conversation.",
)
@table_options(Sampling, without=("seed",), max_tokens=128)
@json_option
@engine_options("generate")
def command(
    options: EngineConfig,
    prompt: str | None,
    prompts: str | None,
    chat: bool,
    **given: Any,  # noqa: ANN401 - as click parsed them
) -> None:
    """Continue PROMPT. Without it, or with "-", the prompt is read from standard input.

    The text goes to standard output as it comes. With --json it goes to standard error, and
    standard output holds the line of JSON alone. With --prompts each result is a line of JSON on
    standard output, as soon as it is there, and --json adds a last one with the totals.
    """
    if prompt is not None and prompts is not None:
        raise click.UsageError("PROMPT and --prompts exclude each other; give one of them")
    if chat and prompts is not None:
        raise click.UsageError("--chat and --prompts exclude each other; give one of them")
    # Made before anything starts, so that a bad number is refused at once.
    sampling = Sampling(seed=options.seed, **given)
    if prompts is not None:
        many.generate_all(options, prompts, sampling)
        return
    if chat:
        _converse(options, prompt, sampling)
        return
    text = read_prompt(prompt)
    check_prompt(options, text, sampling.special)
    shown = sys.stderr if output.as_json() else sys.stdout
    with running_engine(options) as engine:
        result = _result(engine, _stream(engine, text, sampling, shown))
    _print_actors(result)
    output.emit_json(result)


def _converse(options: EngineConfig, prompt: str | None, sampling: Sampling) -> None:
    """Answer a user's turns, each with all before it; --json says what was said in all."""
    from hotcold.runtime.text.chat import ChatTemplate

    codec, context = many.codec_of(options)
    template = ChatTemplate.of(codec.folder)
    shown = sys.stderr if output.as_json() else sys.stdout
    said: list[dict[str, str]] = []

    def ids(turn: str) -> list[int]:
        messages = [*said, {"role": "user", "content": turn}]
        return codec.check(template.encode(codec.tokenizer, messages), context)

    turns = _turns(prompt)
    first = next(turns, None)
    if first is None:
        raise ConfigError("there is nothing to answer; give a prompt or a line of standard input")
    given = ids(first)  # what cannot be used is refused before anything starts
    result: dict[str, Any] = {}
    with closing(template), running_engine(options) as engine:
        for turn in chain([first], turns):
            given = ids(turn) if said else given
            result = _result(engine, _stream(engine, given, sampling, shown))
            said += [{"role": "user", "content": turn}]
            said += [{"role": "assistant", "content": result["text"]}]
    _print_actors(result)
    output.emit_json({**result, "messages": said})


def _turns(prompt: str | None) -> Iterator[str]:
    """What a user says: the prompt, or one line of standard input after the other."""
    if prompt not in (None, "-"):
        yield read_prompt(prompt)
        return
    for raw in sys.stdin.buffer:
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise ConfigError("a line of standard input is not UTF-8; convert it") from None
        if line.strip():
            yield line


def _stream(
    engine: "Engine", prompt: str | list[int], sampling: Sampling, shown: TextIO
) -> "list[Token]":
    """Print the continuation as it comes."""
    if isinstance(prompt, str) and shown.isatty() and sys.stderr.isatty():
        click.secho(prompt, nl=False, err=True, dim=True)
    tokens: list[Token] = []
    try:
        for token in engine.generate(prompt, sampling):
            tokens.append(token)
            click.echo(token.text, nl=False, file=shown)
    finally:
        # The line ends here even when an error or Ctrl-C cuts the text: what is said next on
        # standard error then stands on a line of its own.
        click.echo(file=shown)
    return tokens


def _result(engine: "Engine", tokens: "list[Token]") -> dict[str, Any]:
    last = figures(engine)
    stats = engine.stats()
    keys = ("node_id", "pid", "gate_rows", "up_down_rows", "bytes", "busy_s", "wait_s", "role")
    actors = {name: {key: getattr(own, key) for key in keys} for name, own in stats.actors.items()}
    return {
        "text": "".join(token.text for token in tokens),
        "token_ids": [token.id for token in tokens],
        **many.logprobs_of(tokens),
        "finish": last.finish,
        "prompt_tokens": last.prompt_tokens,
        "reused_tokens": last.reused_tokens,
        "new_tokens": last.new_tokens,
        "prompt_tokens_per_s": last.prompt_tokens_per_s,
        "decode_tokens_per_s": last.decode_tokens_per_s,
        "gb_per_s": last.gb_per_s,
        "gpu_neuron_load": stats.gpu_neuron_load,
        "plan": stats.plan_hash,
        "processors": stats.processors,
        "recall": None if stats.recall is None else stats.recall.recall,
        "recall_standard_error": None if stats.recall is None else stats.recall.standard_error,
        "actors": actors,
    }


def _print_actors(result: dict[str, Any]) -> None:
    """A table of the work that each actor did, its role in words, then the speed."""
    counts, times = ("gate_rows", "up_down_rows"), ("busy_s", "wait_s")
    rows = [
        (
            *(name, str(work["pid"])),
            *(output.count(work[key]) for key in counts),
            f"{work['bytes'] / 1e6:,.1f}",
            *(f"{work[key]:.3f}" for key in times),
        )
        for name, work in result["actors"].items()
    ]
    headers = ("actor", "pid", "gate rows", "up/down rows", "MB read", "busy s", "wait s")
    output.note(output.table(headers, rows))
    said = [f"{name}: {work['role']}" for name, work in result["actors"].items()]
    if result["recall"] is not None:
        said.append(
            f"recall: {100 * result['recall']:.1f} % of the neurons that fire were predicted "
            f"(+- {196 * result['recall_standard_error']:.1f}, estimated from a sample of those "
            "not predicted)"
        )
    given, made = (output.count(result[f"{part}_tokens"], "token") for part in ("prompt", "new"))
    speed = ""  # the first token comes with the prompt
    if result["new_tokens"] > 1:
        speed = f", {result['decode_tokens_per_s']:.1f} tokens/s, {result['gb_per_s']:.2f} GB/s"
    said.append(
        f"prompt: {given}, {result['prompt_tokens_per_s']:.1f} tokens/s; decode: {made}{speed}; "
        f"GPU neuron load: {output.percent(result['gpu_neuron_load'])}; end: {result['finish']}"
    )
    output.note("\n".join(output.wrapped(line, 2) for line in said))


def check_prompt(options: EngineConfig, prompt: str, special: bool) -> None:
    """Turn a prompt into tokens before anything starts.

    Raises:
        CheckpointError: a model that cannot be used, or that has no tokenizer.
        ConfigError: a prompt that cannot be encoded or is longer than the context.
    """
    codec, context = many.codec_of(options)
    codec.check(prompt, context, special)


def read_prompt(argument: str | None) -> str:
    """The prompt given, or all of standard input.

    Raises:
        ConfigError: empty, not UTF-8, or unreasonably long.
        click.UsageError: no prompt, and a terminal on standard input.
    """
    if argument is None and sys.stdin.isatty():
        raise click.UsageError("no prompt; give one as an argument or on standard input")
    text = _from_stdin() if argument in (None, "-") else _checked(argument or "")
    if not text.strip():
        raise ConfigError("the prompt is empty; give at least one word")
    return text


def _from_stdin() -> str:
    try:
        raw = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    except OSError as problem:
        raise LaunchError(
            f"standard input cannot be read ({problem.strerror or problem}); give a prompt"
        ) from problem
    if len(raw) > MAX_PROMPT_BYTES:
        raise ConfigError(
            f"the prompt on standard input has more than {MAX_PROMPT_BYTES} bytes, which no "
            "model's context holds; give a shorter one"
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"the prompt on standard input is not UTF-8 (byte 0x{raw[problem.start]:02x} at offset "
            f"{problem.start}); convert it, with iconv for example"
        ) from None
    # The line end that `echo` and editors add is not meant as part of the prompt.
    return text.removesuffix("\n").removesuffix("\r")


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise ConfigError(
            f"the prompt is not UTF-8 (character {problem.start}); check the terminal's encoding"
        ) from None
    return text
