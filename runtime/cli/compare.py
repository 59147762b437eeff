"""`hotcold compare`: placements and schedules, one engine a model, the same prompt.

Every placement is solved before the first token is generated, so a policy that cannot be used ends
the command before it has cost anything. Cases are cases.py's, solving.py solves and comparison.py
runs them, models are subjects.py's, the page compare_page.py's; here are options and table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.cases import DEFAULT_POLICIES, DEFAULT_SCHEDULE, Case, make_cases
from hotcold.runtime.cli.compare_page import check_page, write_page
from hotcold.runtime.cli.comparison import (
    Manner,
    Measured,
    Row,
    add_speedups,
    measure_all,
    summarise,
)
from hotcold.runtime.cli.options import (
    EngineOptions,
    choose_model,
    engine_options,
    hardware_option,
    json_option,
)
from hotcold.runtime.cli.running import running_engine
from hotcold.runtime.cli.solving import Ready, solve_all, solve_shape, without_schedules
from hotcold.runtime.cli.subjects import Subject, make_subjects
from hotcold.runtime.errors import ConfigError
from hotcold.runtime.units import format_bytes

MODELLED = "pc-low"  # whose speed is computed where there is no GPU to measure


@click.command("compare")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="A placement policy, or 'all' built-in ones; give it once for each to compare."
    f"  [default: {', '.join(DEFAULT_POLICIES)}; {DEFAULT_POLICIES[0]} to compare schedules]",
)
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    metavar="NAME",
    help=f"A schedule policy; give it once for each to compare.  [default: {DEFAULT_SCHEDULE}]",
)
@click.option(
    "--vram",
    "budgets",
    multiple=True,
    metavar="SIZE",
    help="Memory budget of the GPU executor's device, 24MiB for example; give it once for each to"
    " compare.",
)
@click.option(
    "--ablation",
    is_flag=True,
    help="The steps of the paper's Figure 15: +PO, +Engine, +Policy, and ours.",
)
@click.option(
    "--planted/--no-planted",
    default=None,
    help="Also on a planted model with the paper's skew.  [default: where no MODEL is given]",
)
@click.option(
    "--shape",
    metavar="SHAPE",
    help="A published shape with synthetic statistics, instead of MODEL: opt-30b, for example."
    " Nothing is run; speeds are the cost model's.",
)
@click.option(
    "--prompt", default="Once upon a time", show_default=True, help="What every run continues."
)
@click.option("--max-tokens", type=click.IntRange(min=2), default=64, show_default=True)
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Turns of each case, in an order drawn from the seed.",
)
@click.option(
    "--each",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Runs a turn, after its warm-up.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for a page with pictures (needs hotcold[pictures]); made if it is not there.",
)
@hardware_option("place neurons and predict speeds for", "this one, if it has a GPU; else pc-low")
@json_option
@engine_options(policy=False, schedule=False, vram=False)
def command(
    options: EngineOptions,
    folder: str | None,
    policies: tuple[str, ...],
    schedules: tuple[str, ...],
    budgets: tuple[str, ...],
    ablation: bool,
    planted: bool | None,
    shape: str | None,
    prompt: str,
    max_tokens: int,
    repeat: int,
    each: int,
    out: Path | None,
    hardware: str | None,
    as_json: bool,
) -> None:
    """Run placement policies and schedules on the same prompt and print a table.

    Tokens are chosen greedily, so "same tokens" says whether a policy changed the output. Without a
    GPU the loads and tokens are measured, and a column says what the cost model predicts for a
    machine with one. MODEL is a folder; without one, the embedded model and a planted one.
    """
    options = replace(options, model=choose_model(folder, options.model))
    cases = make_cases(policies, schedules, budgets, ablation)
    if not prompt.strip():
        raise ConfigError("the prompt is empty; give at least one word")
    if out is not None:
        check_page(out)
    if shape is not None and (options.model is not None or planted):
        raise click.UsageError("--shape is run on nothing; leave out MODEL and --planted")
    if hardware is None and (shape is not None or not _gpu_here(options)):
        hardware = MODELLED
    options = replace(options, hardware=hardware)
    manner = Manner(prompt, max_tokens, repeat, each, options.seed, out is not None)
    if shape is not None:
        rows = _rows(shape, solve_shape(shape, options, cases), {})
    else:
        subjects = make_subjects(options, cases, planted)
        rows = [row for subject in subjects for row in compare(options, subject, manner)]
    runs = [row.run for row in rows]
    add_speedups(runs)
    notes = explain(rows)
    click.echo(output.table(*table(runs)))
    click.echo(f"\n{notes}")
    report = None
    if out is not None:
        report = str(write_page(out, rows, manner, table, notes))
        output.note(f"page: {report}")
    if as_json:
        output.emit_json({"runs": runs, "report": report})


def _gpu_here(options: EngineOptions) -> bool:
    from hotcold.native import cuda_plugin

    return options.transport == "native" and cuda_plugin.find() is not None


def compare(options: EngineOptions, subject: Subject, manner: Manner) -> list[Row]:
    """Solve and run every case on one model.

    Raises:
        HotcoldError: what solving or the engine raises.
    """
    options = replace(options, model=subject.model)
    ready = solve_all(options, subject.cases)
    first = ready[0]
    launch = {} if first.case.vram is None else {"vram": first.case.vram}
    options = replace(options, settings=without_schedules(options.settings))
    with running_engine(
        options, policy=first.placement, schedule=first.schedule, **launch
    ) as engine:
        measured = measure_all(engine, ready, manner, f"comparing on {subject.name}")
    return _rows(subject.name, ready, measured)


def _rows(name: str, ready: Sequence[Ready], measured: Mapping[Case, Measured]) -> list[Row]:
    """Cases with their entries; where nothing was run, nothing is measured."""
    found = [measured.get(one.case, Measured()) for one in ready]
    runs = summarise(name, ready, found)
    return [Row(*parts) for parts in zip(runs, ready, found, strict=True)]


def table(runs: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows for people; columns in which all are alike are left out."""

    def varies(key: str) -> bool:
        return len({run[key] for run in runs}) > 1

    names: dict[str, Callable[[dict[str, Any]], str]] = {}
    if varies("model"):
        names["model"] = lambda run: run["model"]
    if varies("vram"):
        names["vram"] = lambda run: _budget(run["vram"])
    if varies("step"):
        names["step"] = lambda run: run["step"]
    names["policy"] = lambda run: run["policy"]
    if varies("schedule"):
        names["schedule"] = lambda run: run["schedule"]
    ran = any(run["decode_tokens_per_s"] is not None or run["refused"] for run in runs)
    if ran:
        names["tokens/s"] = lambda run: _number(run["decode_tokens_per_s"])
        names["min..max"] = _spread
    names[f"{runs[0]['predicted_for']}*"] = lambda run: _number(run["predicted_tokens_per_s"])
    if any("speedup" in run for run in runs):
        names["speedup"] = lambda run: f"{run['speedup']:.2f} x" if "speedup" in run else "-"
    if not ran:
        names["expected on gpu"] = lambda run: _share(run["predicted_gpu_neuron_load"])
    else:
        names["neurons on gpu"] = lambda run: _share(run["gpu_neuron_load"])
        names["gpu waits"] = lambda run: _share(run["wait_share"])
        names["same tokens"] = _same
    return list(names), [[show(run) for show in names.values()] for run in runs]


def _same(run: dict[str, Any]) -> str:
    if run["refused"]:
        return "does not run here"
    return "yes" if run["same_tokens"] else "NO"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else output.percent(value)


def _spread(run: dict[str, Any]) -> str:
    low, high = run["decode_tokens_per_s_min"], run["decode_tokens_per_s_max"]
    return "-" if low is None else f"{low:.1f}..{high:.1f}"


def _budget(vram: str | int | None) -> str:
    return format_bytes(vram) if isinstance(vram, int) else vram or "default"


def explain(rows: Sequence[Row]) -> str:
    """What the columns are, below the table: which is measured and which is not."""
    hardware, on_gpu = rows[0].ready.hardware, rows[0].ready.on_gpu
    rates = "its measured rates" if hardware.measured else "its rates, none measured here"
    where = "tokens/s: measured here."
    if not any(row.measured.tokens_per_s for row in rows):
        where = "Nothing was run here; the statistics are those published for the shape."
    elif not on_gpu:
        where = "tokens/s: measured here, without a GPU: both executors share this CPU."
    lines = [
        where,
        f"{hardware.name}*: tokens/s by the cost model from {rates}; computed, not measured.",
    ]
    if any("speedup" in row.run for row in rows):
        by = "measured" if on_gpu else "by the cost model"
        lines.append(f"speedup: over the step +PO, {by} (paper, Figure 15).")
    return "\n".join(lines)
