"""`hotcold evaluate`: perplexity, recall and speed of a predictor, plan or dtype, over text.

With --sweep the curve of a model's predictors beside an untrained one of the same bytes; with
--audit-runs how accurate the running engine's own estimate of the recall is.
"""

import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    count_option,
    engine_options,
    json_option,
    option,
    texts_option,
)
from hotcold.actors.cli.offline import evaluation
from hotcold.runtime.options.config import ENGINE, EngineConfig

if TYPE_CHECKING:
    from hotcold.runtime.model.checkpoints.bundle import Bundle
    from hotcold.runtime.offline.evaluation.audit_trials import AuditTrials
    from hotcold.runtime.offline.evaluation.evaluate import Evaluation
    from hotcold.runtime.offline.evaluation.sweep import Curves

CONTEXT = 512
SORTS = ("speed", "bytes", "recall", "density", "perplexity")


@click.command("evaluate")
@texts_option("--text", "A text to measure on, in UTF-8; may be repeated.", into="texts")
@count_option(
    "--max-tokens",
    "Tokens read, in windows spread over the texts; the first of each is not predicted.",
    *(2, None, 8192),
)
@count_option("--decode", "Tokens generated to measure speed; 0: do not measure it.", 0, None, 64)
@click.option(
    "--sweep",
    is_flag=True,
    help="Measure trained predictors at every recall, beside an untrained one of the same bytes.",
)
@click.option(
    "--audit-runs",
    type=click.IntRange(1, 10_000),
    help="Audit the recall so often, over 512 tokens: how often does its interval hold it?",
)
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAME",
    help="A task of the lm-evaluation-harness, such as piqa; may be repeated.",
)
@click.option(
    "--task-folder",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Tasks of your own, YAML files of the harness.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Documents of each task at most.")
@click.option("--few-shot", type=click.IntRange(min=0), help="Examples before each document.")
@option(
    ENGINE["predictor"],
    "predictors",
    many=True,
    shown="auto",
    help=f"{ENGINE['predictor'].help} Several, or `all`: a table of them.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    default="speed",
    show_default=True,
    help="Column the table is sorted by, the best first.",
)
@json_option
@engine_options("evaluate", own=("predictor",), argument=True)
def command(
    texts: tuple[Path, ...],
    max_tokens: int,
    decode: int,
    sweep: bool,
    audit_runs: int | None,
    tasks: tuple[str, ...],
    predictors: tuple[str, ...],
    sort: str,
    options: EngineConfig,
    **of_tasks: Any,
) -> None:
    """Compare MODEL under the given predictor, plan and dtype with the dense checkpoint.

    Runs in this process, without Ray. The windows are the same for every setting, so results of
    two calls on the same texts can be compared. `--predictor all` measures every installed
    predictor that the model has the data for; `--set predictor.NAME=VALUE` goes to those that know
    it.
    """
    if sum(map(bool, (sweep, audit_runs, tasks))) > 1:
        raise click.UsageError("--sweep, --audit-runs and --tasks exclude each other")
    if not texts and not tasks:
        raise click.UsageError("no text to measure on; give --text FILE")
    several = len(predictors) > 1 or predictors == ("all",)
    if several and (sweep or audit_runs or tasks):
        raise click.UsageError("--sweep, --audit-runs and --tasks take one --predictor")
    config = options
    if predictors and not several:
        config = replace(options, predictor=predictors[0])
    result: dict[str, Any]
    if several:
        text, result = measure_ranking(config, predictors, (texts, max_tokens, decode), sort)
    elif tasks:
        result = measure_tasks(config, tasks, **of_tasks)
        text = evaluation.tasks_summary(result)
    elif sweep:
        curves, share = measure_curves(config, texts, max_tokens)
        text = evaluation.curves_summary(curves, share)
        result = evaluation.curves_json(curves, share)
    elif audit_runs:
        trials = measure_trials(config, texts, audit_runs)
        text, result = evaluation.trials_summary(trials), asdict(trials)
    else:
        single = measure_all([config], texts, max_tokens, decode)[0]
        text, result = evaluation.summary(single), evaluation.as_json_keys(single)
    click.echo(text)
    output.emit_json(result)


def _windows(
    config: EngineConfig, texts: tuple[Path, ...], max_tokens: int
) -> tuple[EngineConfig, list[list[int]], "Bundle"]:
    """The configuration with the context that is measured in, windows of it, and the model."""
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.text.tokenizer import Tokenizer
    from hotcold.runtime.text.windows import spread_windows

    bundle = resolve_model(config.model, config.dtype)
    context = min(config.context or CONTEXT, bundle.spec.max_context)
    windows = spread_windows(list(texts), Tokenizer.load(bundle.path), context, max_tokens)
    return replace(config, context=context), windows, bundle


def measure_all(
    configs: Sequence[EngineConfig], texts: tuple[Path, ...], max_tokens: int, decode: int
) -> list["Evaluation"]:
    """Run the evaluation of several configurations of one model with a progress line."""
    from hotcold.runtime.offline.evaluation.evaluate import evaluate_all

    first, windows, _ = _windows(configs[0], texts, max_tokens)
    held = [replace(one, context=first.context) for one in configs]
    with closing(output.Progress("evaluating", "token")) as progress:
        return evaluate_all(held, windows, decode, progress)


def measure_ranking(
    config: EngineConfig,
    predictors: tuple[str, ...],
    how: tuple[tuple[Path, ...], int, int],
    sort: str,
) -> tuple[str, dict[str, Any]]:
    """Evaluate predictors one after the other; the table that ranks them, and its JSON."""
    from hotcold.runtime.offline.evaluation.ranking import candidates

    chosen, left_out = candidates(config, predictors)
    for name, why in left_out.items():
        output.note(f"hotcold: predictor '{name}' left out: {why}")
    results = measure_all(list(chosen.values()), *how)
    runs = sorted(zip(chosen, results, strict=True), key=lambda run: evaluation.rank(run[1], sort))
    rows = [{**evaluation.as_json_keys(result), "predictor": name} for name, result in runs]
    return evaluation.ranking_summary(runs), {"runs": rows, "left_out": left_out}


def measure_curves(
    config: EngineConfig, texts: tuple[Path, ...], max_tokens: int
) -> tuple["Curves", float]:
    """Measure all operating points; and the predictors' share of the model's parameters."""
    from hotcold.actors.cli.commands.inspect import describe
    from hotcold.runtime.offline.evaluation.sweep import sweep

    config, windows, bundle = _windows(config, texts, max_tokens)
    with closing(output.Progress("sweeping", "window")) as progress:
        curves = sweep(config, windows, progress)
    return curves, curves.parameters / describe(bundle)["parameters"]["total"]


def measure_trials(config: EngineConfig, texts: tuple[Path, ...], runs: int) -> "AuditTrials":
    """Run the audit's trials over the text's first window."""
    from hotcold.runtime.offline.evaluation.audit_trials import run_trials

    config, windows, _ = _windows(config, texts, CONTEXT)
    with closing(output.Progress("auditing", "run")) as progress:
        return run_trials(config, windows[0], runs, progress=progress)


def measure_tasks(
    config: EngineConfig,
    tasks: tuple[str, ...],
    task_folder: Path | None,
    limit: int | None,
    few_shot: int | None,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness; names may be joined by commas."""
    from hotcold.runtime.offline.evaluation.harness import run_tasks

    names = [name for joined in tasks for name in joined.split(",") if name]
    with closing(output.Progress("asking", "request")) as progress:
        with redirect_stdout(sys.stderr):  # results alone go to standard output
            return run_tasks(config, names, task_folder, limit, few_shot, progress)
