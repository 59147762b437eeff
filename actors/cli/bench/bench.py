"""`hotcold bench`: the measurements of runtime/bench, printed.

Each subcommand is one file there, which returns plain nested data with units in its keys.
"""

import statistics
from collections import deque
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.bench import (
    bench_batch,
    bench_prompt,
    bench_replan,
    bench_serve,
    bench_sync,
)
from hotcold.actors.cli.bench.rivals import rival_option, rivals_of
from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    count_option,
    debug_option,
    engine_options,
    json_option,
    option,
)
from hotcold.actors.cli.common.running import figures, running_engine
from hotcold.runtime.bench.nested import found
from hotcold.runtime.limits import processors
from hotcold.runtime.options.config import ENGINE, SAMPLING, EngineConfig
from hotcold.runtime.units import parse_bytes

if TYPE_CHECKING:
    from hotcold.actors import Engine
    from hotcold.runtime.bench.kernels import Settings


@click.group("bench")
def command() -> None:
    """Measure kernels, the exchange between actors, weight stores, prompts and decoding."""


command.add_command(bench_batch.command)
command.add_command(bench_prompt.command)
command.add_command(bench_replan.command)
command.add_command(bench_serve.command)
command.add_command(bench_sync.command)


@command.command("hop")
@count_option("--rounds", "Round trips of each case.", 100, 100_000_000, 20_000)
@option(ENGINE["address"])
@option(ENGINE["model"], help="The model whose passes are measured on a GPU.")
@json_option
@debug_option
def hop(rounds: int, address: str | None, model: str | None) -> None:
    """One-way latency between actors, by shared memory and by Ray.

    pinned: two loops, a core each. unpinned: two loops, wherever the system puts them. loaded: all
    three loops take turns, with the driver alive. With a GPU also what a layer's exchange, there
    and back, adds to a pass of the GPU's graph.
    """
    from hotcold.runtime.bench.gpu_exchange import check_model, exchange

    check_model(model)
    from hotcold.actors.bench.hop import measure
    from hotcold.actors.cluster.ray_cluster import joined

    with joined(address):
        result = measure(rounds)
    in_graph = exchange(model)
    rows = [
        (" ".join(case), f"{times['p50_us']:.2f}", f"{times['p99_us']:.2f}")
        for case, times in found(result, "p50_us")
    ]
    click.echo(output.table(("one way", "p50 us", "p99 us"), rows))
    if in_graph is not None:
        result["gpu_graph"] = in_graph
        click.echo(
            f"an exchange in a GPU's graph adds {in_graph['p50_us']:.2f} us to a layer (99 %: "
            f"{in_graph['p99_us']:.2f}; width {in_graph['width']}); a Ray call there and back "
            f"takes {2 * result['ray']['p50_us']:.0f} us"
        )
    output.emit_json(result)


@command.command("stores")
@click.option(
    "--size", default="2GiB", show_default=True, metavar="SIZE", help="Of each kind of store."
)
@count_option("--rounds", "Reads of each case.", 1, 10_000, 100)
@json_option
@debug_option
def weight_stores(size: str, rounds: int) -> None:
    """How fast kernels read from each kind of weight store (--store).

    With one thread and two. rows_4k: gate rows that do not fire. records_30k: whole neurons.
    sequential: a dense product.
    """
    from hotcold.runtime.bench.stores import measure

    result = measure(parse_bytes(size, "--size"), rounds=rounds)
    rows = [
        (case, threads.removeprefix("threads_"), kind, *(f"{rate:.1f}" for rate in rates.values()))
        for case, by_threads in result.items()
        if isinstance(by_threads, dict)
        for threads, by_kind in by_threads.items()
        for kind, rates in by_kind.items()
    ]
    click.echo(output.table(("read", "threads", "store", "best GB/s", "median GB/s"), rows))
    output.emit_json(result)


@command.command("kernels")
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice(("sparse_ffn", "gate_first", "gemv", "attention")),
    help="Operator; may be repeated.  [default: all]",
)
@count_option(
    *("--d", "Width of the model; may be repeated.  [default: 2048 4096 5120]", 128, 65536),
    into="widths",
)
@count_option(
    *("--density", "Per cent that fire; may be repeated.  [default: 5 10 30 100]", 1, 100),
    into="densities",
)
@option(ENGINE["dtype"], default="float16", shown="", help="Dtype of the weights.")
@count_option("--threads", "Threads; may be repeated.  [default: 1, and one a core]", 1, 1024)
@click.option(
    "--buffer",
    metavar="SIZE",
    help="Memory to walk through; several times the caches.  [default: 2GiB]",
)
@count_option("--samples", "Timed calls of each operator.", 3, 100_000, 21)
@click.option(
    "--variant",
    metavar="FILE",
    help=("Kernels of your own to test and to time beside the built-in ones: C, or CUDA (.cu)."),
)
@click.option("--gpu", is_flag=True, help="The GPU's kernels; implied by a .cu file.")
@json_option
@debug_option
def kernels(
    buffer: str | None,
    variant: str | None,
    gpu: bool,
    **chosen: Any,  # noqa: ANN401 - as click parsed them
) -> None:
    """Bandwidth of each operator, beside that of reading alone.

    For one token, from cold memory. fraction: the operator's bandwidth over that of reading rows of
    the same length, medians of the same run. best: the same for the fastest calls, which says more
    on a busy machine. On a GPU: over the bandwidth of a large dense product.
    """
    from hotcold.runtime.bench.kernels import Settings, doubts, measure

    given = {name: value for name, value in chosen.items() if value}
    if gpu or (variant is not None and variant.endswith(".cu")):
        if buffer is not None or "threads" in given:
            raise click.UsageError("--buffer and --threads belong to the CPU's kernels")
        _gpu_kernels(Settings(**given), variant)
        return
    given.setdefault("threads", sorted({1, processors().at_once}))
    size = parse_bytes(buffer or "2GiB", "--buffer")
    settings = Settings(**given, buffer_bytes=size, variant=_tested(variant))
    result = measure(settings, lambda text: output.note(f"bench kernels: {text}"))
    click.echo(output.table(KERNEL_COLUMNS, kernel_rows(result)))
    for doubt in doubts(result):
        output.note(f"bench kernels: {doubt}")
    output.emit_json(result)


def _gpu_kernels(settings: "Settings", variant: str | None) -> None:
    from hotcold.runtime.bench.gpu_kernels import measure, rows
    from hotcold.runtime.engine.cuda_variant import prepare_cuda_variant, variant_library

    library = None
    if variant is not None:
        prepared = prepare_cuda_variant(variant)
        library = variant_library(prepared)
        output.note(f"bench kernels: {prepared.name} computes what float64 does")
    result = measure(settings, library, lambda text: output.note(f"bench kernels: {text}"))
    columns = ("case", "kernels", "us", "GB/s", "fraction")
    click.echo(output.table(columns, list(rows(result))))
    click.echo(f"a dense product reads {result['read_gb_per_s']:.0f} GB/s")
    output.emit_json(result)


KERNEL_COLUMNS = ("case", "threads", "kernels", "GB/s", "best", "read", "best", "fraction", "best")


def _tested(variant: str | None) -> str | None:
    if variant is None:
        return None
    from hotcold.runtime.engine.variant import load_variant, prepare_variant

    prepared = prepare_variant(variant)
    load_variant(prepared)
    output.note(f"bench kernels: {prepared.name} computes what float64 does")
    return prepared.name


def kernel_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """A table row for every case, thread count and variant of the nested result."""
    rows: list[tuple[str, ...]] = []
    for (*path, threads), value in found(result, "steadiness"):
        for kind, one in (("built-in", value), ("variant", value.get("variant"))):
            if one is None:
                continue
            speeds = [one["gb_per_s"], one["gb_per_s_best"]]
            speeds += [value["read_gb_per_s"], value["read_gb_per_s_best"]]
            shares = [one["bandwidth_fraction"], one["bandwidth_fraction_best"]]
            numbers = [f"{speed:.1f}" for speed in speeds] + [f"{share:.2f}" for share in shares]
            rows.append((" ".join(path), threads.removeprefix("threads"), kind, *numbers))
    return rows


@command.command("decode")
@option(SAMPLING["max_tokens"], default=128, low=8)
@count_option("--repeat", "Rounds measured.", 1, 1000, 5)
@rival_option("transformers")
@click.option(
    "--ray/--no-ray",
    "with_ray",
    default=True,
    help="Measure the transport ray, too, which uses no GPU.  [default: yes]",
)
@json_option
@engine_options("bench decode")
def decode(  # noqa: PLR0917 - as click passes them
    options: EngineConfig,
    max_tokens: int,
    repeat: int,
    rivals: tuple[str, ...],
    with_ray: bool,
) -> None:
    """Decode tokens/s, beside other programs on the same weights.

    The engine and its rivals (transformers in float32 and bfloat16, llama.cpp) take turns; figures
    are medians over the rounds. bytes bound: the time to read a token's bytes at the bandwidth
    measured in the same run; on a GPU, the bound of `hotcold roofline`. Times by phase are those of
    the last tokens; cold, and predict without a GPU, run at the same time as the others.
    """
    result = decode_rates(options, max_tokens, repeat, rivals or ("transformers",), with_ray)
    key = "decode_tokens_per_s"
    rows = [(" ".join(name), f"{one[key]:.1f}") for name, one in found(result, key)]
    click.echo(output.table(("what", "tokens/s"), rows))
    if "speedup" in result:
        click.echo(f"native over the best rival: {result['speedup']:.2f}x")
    click.echo(
        f"{result['native']['gb_per_s']:.1f} GB/s, host memory gives {result['read_gb_per_s']:.1f}:"
        f" {output.of_bound(result['bytes_bound_fraction'])} of the bytes bound"
    )
    output.note_wrong_bound("bench decode", [result["bytes_bound_fraction"]])
    phases = ", ".join(f"{name} {ms:.3f}" for name, ms in result["phase_ms"].items())
    error = result["clock_error_us"]
    click.echo(
        f"ms a token by phase: {phases}" + (f"; GPU's clock within {error:.1f} us" if error else "")
    )
    output.emit_json(result)


def decode_rates(
    options: EngineConfig,
    max_tokens: int,
    repeat: int,
    names: tuple[str, ...],
    with_ray: bool = True,
) -> dict[str, Any]:
    """Measure the engine with its two transports, and the rivals between the native runs."""
    from hotcold.runtime.bench.decode import PROMPT, compare, read_bandwidth
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.text.tokenizer import Tokenizer

    bundle = resolve_model(options.model, options.dtype)
    ids = Tokenizer.load(bundle.path).encode(PROMPT)
    cores = processors().at_once
    with TemporaryDirectory(prefix="hotcold-") as folder:
        rivals = {
            name: partial(rate, [ids], max_tokens)
            for name, rate in rivals_of(names, bundle, Path(folder)).items()
        }
        with running_engine(options, transport="native", prefix_cache=False) as engine:
            rate = partial(_engine_rate, engine, ids, max_tokens)
            result = compare(
                rate, rivals, repeat, lambda text: output.note(f"bench decode: {text}")
            )
            stats = engine.stats()
            result["phase_ms"] = {name: 1e3 * s for name, s in stats.phase_s.items()}
            result["clock_error_us"] = 1e6 * stats.clock_error_s
            bound_s = engine.roofline().token_s if engine.uses_gpu else None
    output.note(f"bench decode: read bandwidth{', transport ray' if with_ray else ''}")
    read = read_bandwidth(bundle.record.bytes, cores)
    result["read_gb_per_s"] = read
    native = result["native"]
    result["bytes_bound_fraction"] = (
        native["decode_tokens_per_s"] * bound_s if bound_s else native["gb_per_s"] / read
    )
    if not with_ray:
        return result
    with running_engine(options, transport="ray") as engine:
        rates = [_engine_rate(engine, ids, max_tokens)[0] for _ in range(3)]
    result["ray"] = {"decode_tokens_per_s": statistics.median(rates)}
    return result


def _engine_rate(engine: "Engine", ids: list[int], max_tokens: int) -> tuple[float, float]:
    deque(engine.generate(ids, max_tokens=max_tokens, ignore_eos=True), maxlen=0)
    last = figures(engine)
    return last.decode_tokens_per_s, last.gb_per_s
