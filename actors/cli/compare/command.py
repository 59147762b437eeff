"""`hotcold compare`: placements and schedules, one engine a model, the same prompt.

Every placement is solved before the first token is generated, so a policy that cannot be used ends
the command early. cases.py names the cases, solving.py solves them, runs.py runs them; subjects.py
has the models, table.py and page.py show the results. The options are here.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    count_option,
    engine_options,
    json_option,
    option,
    out_option,
)
from hotcold.actors.cli.common.running import Terminated, running_engine, signal_inside
from hotcold.actors.cli.compare.cases import DEFAULT_POLICIES, DEFAULT_SCHEDULE, Case, make_cases
from hotcold.actors.cli.compare.page import write_page
from hotcold.actors.cli.compare.runs import (
    FOR_WANT,
    Manner,
    Measured,
    Row,
    add_speedups,
    measure_all,
    refuse,
    summarise,
)
from hotcold.actors.cli.compare.solving import Ready, solve_all, solve_shape, without_schedules
from hotcold.actors.cli.compare.subjects import Subject, make_subjects
from hotcold.actors.cli.compare.table import explain, table
from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.runtime.exchange.transports import SHARES_MEMORY
from hotcold.runtime.hardware.machine_file import load_hardware
from hotcold.runtime.options.config import ENGINE, SAMPLING, EngineConfig

if TYPE_CHECKING:
    from hotcold.actors import Engine

MODELLED = "pc-low"  # whose speed is computed where there is no GPU to measure


@click.command("compare")
@option(
    ENGINE["policy"],
    "policies",
    many=True,
    shown=f"{', '.join(DEFAULT_POLICIES)}; {DEFAULT_POLICIES[0]} to compare schedules",
    help="A placement policy to compare, or 'all' built-in ones.",
)
@option(
    ENGINE["schedule"],
    "schedules",
    many=True,
    shown=DEFAULT_SCHEDULE,
    help="A schedule policy to compare.",
)
@option(
    ENGINE["vram"], "budgets", many=True, help="A GPU memory budget to compare: 24MiB, for example."
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
@option(SAMPLING["max_tokens"], low=2)
@count_option("--repeat", "Turns of each case, in an order drawn from the seed.", 1, 1000, 3)
@count_option("--each", "Runs in each turn, after its warm-up.", 1, 1000, 1)
@click.option(
    "--time-limit",
    "limit_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Begin no turn later than this; the table has what was measured until then.",
)
@out_option(
    "Folder for a page with pictures (needs hotcold[pictures]); made if it is not there.",
    required=False,
)
@option(ENGINE["hardware"], shown=f"this one, if it has a GPU; else {MODELLED}")
@json_option
@engine_options("compare", own=("policy", "schedule", "vram", "hardware"), argument=True)
def command(
    options: EngineConfig,
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
    limit_s: float | None,
    out: Path | None,
    hardware: str | None,
) -> None:
    """Run placement policies and schedules on the same prompt and print a table.

    Without a GPU compare the GPU neuron load, and the speed that the cost model computes for a
    machine with one: the speeds measured here do not rank placements. Tokens are chosen greedily;
    the table says where a policy changed them. MODEL is a folder; without one, the embedded model
    and a planted one.
    """
    cases = make_cases(policies, schedules, budgets, ablation, options.settings)
    if not prompt.strip():
        raise ConfigError("the prompt is empty; give at least one word")
    if out is not None:
        from hotcold.runtime.offline.pictures.draw import check_matplotlib

        check_matplotlib()
    if shape is not None and (options.model is not None or planted):
        raise click.UsageError("--shape is run on nothing; leave out MODEL and --planted")
    if hardware is None and (shape is not None or not _gpu_here(options)):
        hardware = MODELLED
    if hardware is not None:
        load_hardware(hardware)  # refused before a model is drawn
    options = replace(options, hardware=hardware)
    until = None if limit_s is None else time.monotonic() + limit_s
    manner = Manner(prompt, max_tokens, repeat, each, options.seed, out is not None, until)
    rows: list[Row] = []
    results = sys.stdout

    def rescue(more: list[Row]) -> None:
        if any(row.measured.tokens_per_s for row in [*rows, *more]):
            with redirect_stdout(results):  # which is standard error while an engine runs
                _report([*rows, *more], manner, None)

    if shape is not None:
        rows = _rows(shape, solve_shape(shape, options, cases), {})
    else:
        for subject, ready in solve_subjects(options, make_subjects(options, cases, planted)):
            rows += compare(options, subject, ready, manner, rescue)
    _report(rows, manner, out)


def _report(rows: Sequence[Row], manner: Manner, out: Path | None) -> None:
    """Table and notes, the page where one is asked for, and the line of JSON."""
    runs = [row.run for row in rows]
    add_speedups(runs)
    click.echo(output.table(*table(runs)))
    click.echo("\n" + "\n".join(map(output.wrapped, explain(rows))))
    report = None
    if out is not None:
        report = str(write_page(out, rows, manner))
        output.note(f"page: {report}")
    output.emit_json({"runs": runs, "report": report})


def _gpu_here(options: EngineConfig) -> bool:
    from hotcold.native.gpu import cuda_plugin

    return SHARES_MEMORY[options.transport] and cuda_plugin.find() is not None


def solve_subjects(
    options: EngineConfig, subjects: Sequence[Subject]
) -> list[tuple[Subject, list[Ready]]]:
    """Every case on every model, before any of them is run.

    Raises:
        HotcoldError: a case that somebody asked for cannot be solved.
    """
    solved = []
    for subject in subjects:
        try:
            ready = solve_all(replace(options, model=subject.model), subject.cases)
        except HotcoldError as error:
            if not subject.implied:
                raise
            output.note(f"hotcold: the {subject.name} model is left out: {error}")
        else:
            solved.append((subject, ready))
    return solved


def compare(
    options: EngineConfig,
    subject: Subject,
    ready: Sequence[Ready],
    manner: Manner,
    rescue: Callable[[list[Row]], None],
) -> list[Row]:
    """Run every case on one model.

    `rescue` gets what was measured when the runs end early, by a signal or a failure.

    Raises:
        HotcoldError: what the engine raises.
    """
    settings = without_schedules(options.settings)
    options = replace(options, model=subject.model, settings=settings)
    measured = {one.case: Measured() for one in ready}
    output.note(f"hotcold: starting the actors for {subject.name}")
    with ExitStack() as stack:
        engine, loaded = _launch(stack, options, ready, measured)
        try:
            with signal_inside():
                measure_all(engine, ready, manner, measured, loaded, f"comparing on {subject.name}")
        except (KeyboardInterrupt, Terminated, HotcoldError):
            # Before the engine closes: who ends a command may not wait so long.
            rescue(_rows(subject.name, ready, measured))
            raise
    return _rows(subject.name, ready, measured)


def _launch(
    stack: ExitStack,
    options: EngineConfig,
    ready: Sequence[Ready],
    measured: Mapping[Case, Measured],
) -> "tuple[Engine, Ready]":
    """An engine with the first case that this machine can run."""
    for one in ready:
        own: dict[str, Any] = {"policy": one.placement, "schedule": one.schedule}
        if one.case.vram is not None:
            own["vram"] = one.case.vram
        running = running_engine(options, prefix_cache=False, **own)
        try:
            return stack.enter_context(running), one
        except FOR_WANT as error:
            if one is ready[-1]:
                raise
            refuse(measured[one.case], one, error)
    raise AssertionError("solve_all gives at least one case")


def _rows(name: str, ready: Sequence[Ready], measured: Mapping[Case, Measured]) -> list[Row]:
    """Cases with their entries; where nothing was run, nothing is measured."""
    found = [measured.get(one.case, Measured()) for one in ready]
    runs = summarise(name, ready, found)
    return [Row(*parts) for parts in zip(runs, ready, found, strict=True)]
