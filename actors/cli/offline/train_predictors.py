"""`hotcold train-predictors`: adaptive predictors for a model, from a profile and text."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    count_option,
    engine_options,
    json_option,
    out_option,
    texts_option,
)
from hotcold.actors.cli.offline.profile import FILE_NAME as PROFILE
from hotcold.actors.cli.offline.profile import find_profile
from hotcold.native.errors import ConfigError
from hotcold.runtime.options.config import EngineConfig
from hotcold.runtime.units import format_bytes

REPORT = "predictors.json"
HELD_BACK = 8  # one part of the text in so many is for thresholds, one for the report


_number = partial(click.option, type=float, show_default=True)


@click.command("train-predictors")
@texts_option(
    "--text", "A text to train on, in UTF-8; may be repeated.", into="texts", required=True
)
@out_option("Folder for the predictors and their report; made if it is not there.")
@click.option(
    "--profile",
    "profile_folder",
    metavar="DIR",
    type=click.Path(exists=True, path_type=Path),
    help="Counts made by `hotcold profile`.  [default: those that come with the model]",
)
@texts_option(
    "--calibrate", "Text that sets the thresholds.  [default: an eighth of --text, held back]"
)
@texts_option("--report", "Text the figures are reported on.  [default: another eighth]")
@count_option(
    "--max-tokens",
    "Tokens to train on, spread over the texts. Their inputs are kept on disk meanwhile.",
    *(64, None, 163_840),
)
@_number("--recall", default=0.95, help="Recall that each layer must reach.")
@_number(
    "--density",
    default=0.25,
    help="Mean share of neurons that may be proposed; predictors are as small as this allows.",
)
@_number(
    "--perplexity",
    default=1.02,
    help="Highest ratio to the dense model's; recall is raised to meet it. 0: no limit.",
)
@_number(
    "--share",
    default=0.10,
    help="Largest size of all predictors, as a share of the model's parameters.",
)
@click.option("--width", type=int, default=0, help="Width in every layer; 0: chosen for each.")
@click.option(
    "--lookahead", type=int, default=0, help="Predict from the input of so many layers earlier."
)
@count_option("--epochs", "Passes over the text.", 1, None, 2)
@click.option("--threads", type=click.IntRange(min=1), help="Layers trained at a time.")
@json_option
@engine_options("train-predictors", argument=True)
def command(options: EngineConfig, **given: Any) -> None:
    """Train a predictor for every layer of MODEL, set its threshold, and report its quality.

    MODEL is a folder; without one, the embedded model. An interrupted run resumes with the layers
    it has not finished. Use the result with --predictor DIR.
    """
    from hotcold.runtime.files.reserve import check_room
    from hotcold.runtime.model.checkpoints.bundle import look_at, resolve_model

    out: Path = given["out"]
    check_out(out)
    settings = _settings(given)
    folder, spec = look_at(options.model, options.dtype)
    settings.check_fits(spec)
    own = folder / PROFILE
    profile = find_profile(given["profile_folder"], own if own.is_file() else None)
    profile.check_fits(spec)
    parts = _windows(folder, given, min(settings.context, spec.max_context))
    tokens = sum(map(len, parts[0]))
    check_room(
        *(out, 2 * tokens * spec.d_model * spec.n_layers, f"the inputs of {tokens} tokens"),
        "make room, lower --max-tokens or give an --out on another disk",
    )
    bundle = resolve_model(options.model, options.dtype)
    if given["profile_folder"] is not None:
        profile.check_model(spec, bundle.checksum)
    # Torch takes seconds to import.
    from hotcold.runtime.offline.training.report import as_report, run_time
    from hotcold.runtime.offline.training.train import train_predictors

    out.mkdir(parents=True, exist_ok=True)
    trained = train_predictors(bundle, profile, *parts, out, settings, output.note)
    speed = run_time(bundle, trained, settings.lookahead, parts[2])
    report = output.finite(as_report(bundle, profile, trained, speed))
    (out / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    click.echo(summary(report))
    output.note(f"predictors in {trained.path}, report in {out / REPORT}")
    output.emit_json(report)


def _settings(given: dict[str, Any]) -> Any:
    from hotcold.runtime.offline.training.settings import FitSettings, TrainSettings

    names = ("recall", "density", "perplexity", "share", "width", "lookahead")
    more = {} if given["threads"] is None else {"workers": given["threads"]}
    return TrainSettings(
        **{name: given[name] for name in names}, fit=FitSettings(epochs=given["epochs"]), **more
    )


def check_out(out: Path) -> None:
    """Refuse a folder of something else, by a ConfigError that names it."""
    from hotcold.runtime.offline.training.settings import WORK
    from hotcold.runtime.predictors.predictor_file import FILE_NAME

    known = {FILE_NAME, REPORT, PROFILE, WORK}
    if out.exists() and (found := {path.name for path in out.iterdir()}) and not found & known:
        raise ConfigError(
            f"--out {out} holds other files ({sorted(found)[0]}); give a new or empty folder"
        )


def _windows(
    model: Path, given: dict[str, Any], context: int
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Windows to train on, to set thresholds on, and to report on; no window is in two of them.

    What is held back is an unbroken part of the text: a window between two that were trained on is
    too like them to speak for other text (recall .951 there, .944 on other books).

    Raises:
        ConfigError: a file given for two of the three, or too little text.
    """
    from hotcold.runtime.text.tokenizer import Tokenizer
    from hotcold.runtime.text.windows import spread_windows

    check_apart({name: given[name] for name in ("texts", "calibrate", "report")})
    tokenizer = Tokenizer.load(model)
    tokens = given["max_tokens"]

    def take(paths: Sequence[Path], most: int) -> list[list[int]]:
        return spread_windows(list(paths), tokenizer, context, max(most, context))

    train = take(given["texts"], tokens)
    count, held = len(train), dict[str, list[list[int]]]()
    for name, part in (("report", 7), ("calibrate", 3)):  # the later first: places stay
        begin, end = (count * place // HELD_BACK for place in (part, part + 1))
        if given[name]:
            held[name] = take(given[name], max(tokens // HELD_BACK, 4 * context))
        else:
            held[name], train[begin:end] = train[begin:end], []
        if len(held[name]) < 2:  # a single one says nothing of how far another text may be off
            raise ConfigError(
                f"the text makes {len(held[name])} of the 2 windows of {context} tokens that "
                f"--{name} takes at least; give longer text"
                + ("" if given[name] else f", --text of {2 * HELD_BACK} windows")
            )
    return train, held["calibrate"], held["report"]


def check_apart(texts: dict[str, Sequence[Path]]) -> None:
    """Refuse, by a ConfigError, a file that serves two ends: both need text not seen before."""
    seen: dict[tuple[int, int], tuple[str, Path]] = {}
    for end, paths in texts.items():
        option = f"--{end.removesuffix('s')}"
        for path in paths:
            stat = path.stat()
            before, first = seen.setdefault((stat.st_dev, stat.st_ino), (option, path))
            if before != option:
                raise ConfigError(
                    f"{path} is given for {before} (as {first}) and for {option}; the figures "
                    "would be of text already used: give another file, or leave the option out to "
                    "have a part of --text held back"
                )


def summary(report: dict[str, Any]) -> str:
    """The report as a table and five lines."""
    heads = ("layer", "width", "bytes", "recall", "precision", "density", "cosine loss")
    rows = [
        (
            str(row["layer"]),
            str(row["width"]),
            output.count(row["bytes"]),
            *(f"{row[name]:.3f}" for name in ("recall", "precision", "density")),
            f"{row['cosine_loss']:.4f}",
        )
        for row in report["layers"]
    ]
    total = ("all", "", output.count(report["bytes"]))
    rows.append(
        (*total, *(f"{report[name]:.3f}" for name in ("recall", "precision", "density")), "")
    )
    cost, share = report["ffn_bytes_per_token"], report["predict_time_share"]
    return "\n".join(
        [
            output.table(heads, rows),
            f"recall {report['recall']:.3f}, standard error {report['recall_standard_error']:.3f}, "
            f"on text not trained on; {report['recall_target']} was promised",
            f"perplexity {report['perplexity']:.3f}, dense {report['perplexity_dense']:.3f}: "
            f"{report['perplexity_ratio']:.4f}x",
            f"{report['parameter_share']:.1%} of the model's parameters, "
            f"{format_bytes(report['bytes'])}",
            f"decode {report['decode_tokens_per_s']:.1f} tokens/s, prediction "
            f"{output.percent(math.nan if share is None else share)} of the time",
            "feed-forward weights a token: "
            + ", ".join(f"{name} {value / 1e6:.2f} MB" for name, value in cost.items()),
        ]
    )
