"""`hotcold bench`: the measurements of runtime/bench, printed.

Each subcommand is one file there, which returns plain nested data with units in its keys.
"""

import os
import statistics
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.options import (
    EngineOptions,
    debug_option,
    engine_options,
    json_option,
)
from hotcold.runtime.cli.running import figures, running_engine

if TYPE_CHECKING:
    from hotcold.actors import Engine


@click.group("bench")
def command() -> None:
    """Measure the exchange between actors and the decode speed."""


@command.command("hop")
@click.option(
    "--rounds",
    type=click.IntRange(100, 100_000_000),
    default=20_000,
    show_default=True,
    help="Round trips of each case.",
)
@click.option("--address", default=None, help="Ray cluster to join; none starts one here.")
@json_option
@debug_option
def hop(rounds: int, address: str | None, as_json: bool) -> None:
    """One way between Ray actors: their resident C loops through shared memory, and a Ray call.

    pinned: two loops, a core each. unpinned: two loops, wherever the system puts them. loaded: all
    three loops take turns and the driver is alive.
    """
    from hotcold.actors.cluster import joined
    from hotcold.actors.hop import measure

    with joined(address):
        result = measure(rounds)
    rows = [
        (case, f"{times['p50_us']:.2f}", f"{times['p99_us']:.2f}")
        for case, times in hop_cases(result)
    ]
    click.echo(output.table(("one way", "p50 us", "p99 us"), rows))
    if as_json:
        output.emit_json(result)


def hop_cases(result: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Name and times of every measured case, nested names joined by a blank."""
    cases: list[tuple[str, dict[str, float]]] = []
    for name, value in result.items():
        if isinstance(value, dict) and "p50_us" in value:
            cases.append((name, value))
        elif isinstance(value, dict):
            cases += [(f"{name} {inner}", times) for inner, times in hop_cases(value)]
    return cases


@command.command("decode")
@click.option("--max-tokens", type=click.IntRange(min=8), default=128, show_default=True)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds measured."
)
@json_option
@engine_options()
def decode(options: EngineOptions, max_tokens: int, repeat: int, as_json: bool) -> None:
    """Decode tokens/s of both transports, beside `transformers` on the same checkpoint.

    The engine and `transformers` in float32 and bfloat16 take turns; medians over the rounds.
    """
    result = decode_rates(options, max_tokens, repeat)
    rows = [(name, f"{speed:.1f}") for name, speed in decode_speeds(result)]
    click.echo(output.table(("what", "tokens/s"), rows))
    click.echo(f"native over the best of transformers: {result['speedup']:.2f}x")
    if as_json:
        output.emit_json(result)


def decode_rates(options: EngineOptions, max_tokens: int, repeat: int) -> dict[str, Any]:
    """Measure the engine with its two transports, and transformers between the native runs."""
    from hotcold.runtime.bench.decode import PROMPT, compare, source_folder, transformers_rates
    from hotcold.runtime.formats.bundle import resolve_model
    from hotcold.runtime.tokenizer import Tokenizer

    bundle = resolve_model(options.model, options.dtype)
    ids = Tokenizer.load(bundle.path).encode(PROMPT)
    cores = len(os.sched_getaffinity(0))
    rivals = transformers_rates(source_folder(bundle), ids, max_tokens, cores)
    with running_engine(options, transport="native") as engine:
        rate = partial(_engine_rate, engine, ids, max_tokens)
        result = compare(rate, rivals, repeat, lambda text: output.note(f"bench decode: {text}"))
    output.note("bench decode: transport ray")
    with running_engine(options, transport="ray") as engine:
        rates = [_engine_rate(engine, ids, max_tokens)[0] for _ in range(3)]
    result["ray"] = {"decode_tokens_per_s": statistics.median(rates)}
    return result


def _engine_rate(engine: "Engine", ids: list[int], max_tokens: int) -> tuple[float, float]:
    """Decode once: tokens/s and GB/s."""
    deque(engine.generate(ids, max_tokens=max_tokens, ignore_eos=True), maxlen=0)
    last = figures(engine)
    return last.decode_tokens_per_s, last.gb_per_s


def decode_speeds(result: dict[str, Any], path: str = "") -> list[tuple[str, float]]:
    """Every decode_tokens_per_s in the nested result, named by where it stands."""
    speeds: list[tuple[str, float]] = []
    for name, value in result.items():
        if name == "decode_tokens_per_s" and isinstance(value, (int, float)):
            speeds.append((path, float(value)))
        elif isinstance(value, dict):
            speeds += decode_speeds(value, f"{path} {name}".strip())
    return speeds
