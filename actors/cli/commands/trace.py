"""`hotcold trace`: what every actor did for every token, as a Perfetto file and a picture."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, option, out_option
from hotcold.actors.cli.common.running import figures, running_engine
from hotcold.native.errors import ConfigError, KernelError
from hotcold.runtime.options.config import SAMPLING, EngineConfig

if TYPE_CHECKING:
    from hotcold.actors import Engine
    from hotcold.runtime.tracing.timeline import Pass

TRACE, PICTURE = "trace.json", "token.png"
WARM_UP_TOKENS = 8


@click.command("trace")
@click.option("--prompt", default="Once upon a time", show_default=True, help="What is continued.")
@option(SAMPLING["max_tokens"], default=16, low=2, high=4096)
@out_option(f"Folder for {TRACE} and {PICTURE}; made if it is not there.")
@json_option
@engine_options("trace", argument=True)
def command(options: EngineConfig, prompt: str, max_tokens: int, out: Path) -> None:
    """Record what each actor does when: trace.json for ui.perfetto.dev, and a picture of a token.

    The trace has a track for each actor, all on one clock, with steps, the waits in them, and an
    arrow for each exchange. The picture shows the token of median length; it needs
    hotcold[pictures]. MODEL is a folder; without one, the embedded model.
    """
    from hotcold.runtime.tracing.timeline import perfetto, totals, typical

    if not prompt.strip():
        raise ConfigError("the prompt is empty; give at least one word")
    with running_engine(options, prefix_cache=False) as engine:
        found, counters = record(engine, prompt, max_tokens)
        about = _about(engine, options)
        trace = perfetto(found, engine.programs, about)
    decoded = found[-(max_tokens - 1) :]
    token = typical(decoded)
    picture = None if token is None else _picture(token, about)
    files = {TRACE: json.dumps(trace, allow_nan=False).encode()}
    if picture is not None:
        files[PICTURE] = picture
    output.write_files(out, "the trace", files)
    actors = {actor: vars(total) | counters[actor] for actor, total in totals(found).items()}
    result: dict[str, Any] = {
        "trace": str(out / TRACE),
        "picture": None if picture is None else str(out / PICTURE),
        "passes": len(found),
        "token_us": None if token is None else token.total_ns / 1e3,
        "actors": actors,
    }
    click.echo(_table(actors, len(found)))
    click.echo(result["trace"])
    if picture is not None:
        click.echo(result["picture"])
    output.emit_json(result)


def record(
    engine: "Engine", prompt: str, max_tokens: int
) -> "tuple[list[Pass], dict[str, dict[str, float]]]":
    """Generate once to warm up and once for the record.

    Returns the complete passes of the second generation, and what the actors' counters say of it.

    Raises:
        KernelError: no pass was recorded whole.
    """
    from hotcold.runtime.tracing.timeline import passes

    _generate(engine, prompt, WARM_UP_TOKENS)
    before, since = engine.stats().actors, time.monotonic_ns()
    _generate(engine, prompt, max_tokens)
    after, spans = engine.stats().actors, engine.spans()
    found = passes(spans, since)
    if not found:
        raise KernelError("no pass was recorded; the transport keeps no spans of whole passes")
    made = figures(engine)
    output.note(
        f"hotcold: {output.count(made.new_tokens, 'token')}, {made.decode_tokens_per_s:.1f} "
        f"tokens/s; {output.count(len(found), 'pass')} recorded whole"
    )
    return found, {
        actor: {
            "counted_busy_s": after[actor].busy_s - before[actor].busy_s,
            "counted_wait_s": after[actor].wait_s - before[actor].wait_s,
        }
        for actor in after
    }


def _generate(engine: "Engine", prompt: str, max_tokens: int) -> None:
    for _ in engine.generate(prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True):
        pass


def _about(engine: "Engine", options: EngineConfig) -> dict[str, Any]:
    stats = engine.stats()
    return {
        "model": options.model or "embedded",
        "policy": stats.policy,
        "schedule": stats.schedule,
        "transport": stats.transport,
        "plan": stats.plan_hash,
        "roles": {actor: own.role for actor, own in stats.actors.items()},
    }


def _picture(token: "Pass", about: dict[str, Any]) -> bytes | None:
    from hotcold.runtime.offline.pictures.draw import check_matplotlib, figure_png
    from hotcold.runtime.offline.pictures.timeline import draw_token

    try:
        check_matplotlib()
    except ConfigError as error:
        output.note(f"hotcold: {PICTURE} is left out: {error}")
        return None
    caption = f"{Path(about['model']).name}; {about['policy']}, {about['schedule']}"
    return figure_png(draw_token(token, caption))


def _table(actors: dict[str, Any], count: int) -> str:
    rows = []
    for actor, total in actors.items():
        by_op = ", ".join(
            f"{op} {1e6 * seconds / count:.1f}" for op, seconds in total["by_op_s"].items()
        )
        both = total["busy_s"] + total["wait_s"]
        rows.append(
            (
                actor,
                f"{1e6 * total['busy_s'] / count:.1f}",
                f"{1e6 * total['wait_s'] / count:.1f}",
                output.percent(total["wait_s"] / both if both else 0.0),
                by_op,
            )
        )
    return output.table(("actor", "busy us a pass", "waits us", "waits", "of that"), rows)
