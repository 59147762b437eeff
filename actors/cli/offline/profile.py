"""`hotcold profile`: how often and how strongly each neuron fires over a text.

Placement policies, predictors, pictures and the policy `oracle` need its result. Runs the model in
this process, in plain torch, on a GPU where there is one.
"""

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import (
    device_option,
    engine_options,
    json_option,
    option,
    out_option,
    texts_option,
)
from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.limits import processors
from hotcold.runtime.options.config import DEFAULT_CONTEXT, ENGINE, SAMPLING, EngineConfig

if TYPE_CHECKING:
    from hotcold.runtime.offline.profiling.job import Profiled, ProfileJob
    from hotcold.runtime.offline.profiling.sampling import SelfText
    from hotcold.runtime.profiles.profile import ActivationProfile

FILE_NAME = "activations.npz"  # hotcold.runtime.profiles.profile, which costs numpy to import
SELF_TOKENS = 32768


@click.command("profile")
@texts_option(
    "--text",
    "A text to count over, in UTF-8; .jsonl: a document a line. May be repeated.",
    into="texts",
)
@click.option(
    "--self",
    "by_itself",
    is_flag=True,
    help="Count over text sampled from the model itself, kept as sampled.jsonl.",
)
@out_option(f"Folder for {FILE_NAME}; made if it is not there.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help=f"Stop after so many tokens.  [default: all; with --self {SELF_TOKENS}]",
)
@click.option(
    "--field", default="text", show_default=True, help="Field with the text of a JSON line."
)
@click.option("--bitmaps", is_flag=True, help="Also keep which neurons fired for every token.")
@option(ENGINE["context"], low=2, help="Tokens of a window.")
@option(SAMPLING["temperature"], default=1.0, help="Temperature of the text of --self.")
@option(SAMPLING["seed"], help="Seed of the text of --self.")
@device_option("Where to run the model.")
@option(ENGINE["threads"], help="Threads to count with.")
@click.option(
    "--against",
    metavar="PATH",
    type=click.Path(exists=True, path_type=Path),
    help="Another profile: print how much of the hottest 20 % both texts share.",
)
@json_option
@engine_options("profile", argument=True)
def command(
    options: EngineConfig,
    out: Path,
    against: Path | None,
    **given: Any,
) -> None:
    """Count how often, and how strongly, each neuron of MODEL fires over the texts.

    MODEL is a folder; without one, the embedded model. The counts are exact: every gate row is
    evaluated for every token. An interrupted run continues when it is started again with the same
    arguments. Profiles are read as their file, their folder, or as a folder of PowerInfer's
    activation_0.pt, activation_1.pt and so on.
    """
    from hotcold.runtime.profiles.profile import ActivationProfile

    own = _own_text(given)
    check_out(out)
    other = None if against is None else ActivationProfile.load(against)
    context = check_job(options, given, own, other, out)
    from hotcold.runtime.offline.profiling.job import run_job  # torch takes seconds to import

    job = make_job(options, given, own, context)
    begin = time.monotonic()
    with closing(output.Progress("profiling", "token")) as progress:
        done = run_job(job, out, progress, output.note)
    seconds = time.monotonic() - begin
    click.echo(done.profile.summary())
    result = describe(job, done, seconds)
    output.note(f"counts in {done.path}, {result['tokens_per_s']:.0f} tokens/s on {job.device}")
    if done.skipped.lines:
        output.note(f"{done.skipped}")
    if other is not None:
        result["overlap"] = done.profile.overlap(other)
        click.echo(f"{result['overlap']:.1%} of the hottest 20 % as in {against}")
    output.emit_json(result)


def check_job(
    options: EngineConfig,
    given: dict[str, Any],
    own: "SelfText | None",
    other: "ActivationProfile | None",
    out: Path,
) -> int:
    """Refuse what files and arguments show to be unusable; the tokens of a window.

    Raises:
        HotcoldError: a model, profile, text or context that cannot be used, or a disk too full.
    """
    from hotcold.runtime.files.recording import check_size
    from hotcold.runtime.files.reserve import check_room
    from hotcold.runtime.model.checkpoints.bundle import look_at
    from hotcold.runtime.text.tokenizer import Tokenizer
    from hotcold.runtime.text.windows import token_windows

    folder, spec = look_at(options.model, options.dtype)
    if other is not None:
        other.check_fits(spec)
    context: int = given["context"] or min(spec.max_context, DEFAULT_CONTEXT)
    if context > spec.max_context:
        raise ConfigError(
            f"--context {context} is more than the {spec.max_context} positions this model was "
            "made for"
        )
    most = given["max_tokens"]
    if given["bitmaps"] and (tokens := own.tokens if own is not None else most):
        width = -(-spec.n_neurons // 8)
        check_size((spec.n_layers, width), tokens)
        taken = 2 * tokens * spec.n_layers * width  # the archive is made of a file of bits
        check_room(out, taken, f"bitmaps of {tokens} tokens", "make room or lower --max-tokens")
    if own is None:
        tokenizer = Tokenizer.load(folder, spec.vocab_size)
        found = token_windows(given["texts"], tokenizer, context, most, given["field"])
        if next(found, None) is None:
            raise ConfigError(f"no text to profile in {', '.join(map(str, given['texts']))}")
    return context


def make_job(
    options: EngineConfig, given: dict[str, Any], own: "SelfText | None", context: int
) -> "ProfileJob":
    """The options as a job; converts the model where that has not happened yet."""
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.offline.plant.making import find_device
    from hotcold.runtime.offline.profiling.job import ProfileJob

    device = find_device(given["device"])
    bundle = resolve_model(options.model, options.dtype)
    threads = given["threads"]
    return ProfileJob(
        bundle,
        replace(options, threads=threads, predictor="exact", context=context),
        context,
        device,
        threads or processors().at_once,
        given["texts"],
        own,
        given["field"],
        None if own is not None else given["max_tokens"],
        given["bitmaps"],
    )


def _own_text(given: dict[str, Any]) -> "SelfText | None":
    """What --self asks for; None with --text; UsageError: both of them, or neither."""
    from hotcold.runtime.offline.profiling.sampling import SelfText

    if given["by_itself"] == bool(given["texts"]):
        raise click.UsageError("give either --text FILE, which may be repeated, or --self")
    if not given["by_itself"]:
        return None
    return SelfText(given["max_tokens"] or SELF_TOKENS, given["temperature"], given["seed"])


def describe(job: "ProfileJob", done: "Profiled", seconds: float) -> dict[str, Any]:
    """The result as plain data, units in the keys."""
    profile: ActivationProfile = done.profile
    counted = profile.tokens - done.resumed_tokens
    return {
        "profile": str(done.path),
        "tokens": profile.tokens,
        "sparsity": float(profile.sparsity_L.mean()),
        "sparsity_L": [float(share) for share in profile.sparsity_L],
        "hot_share_for_80": profile.share_for_model(0.8),
        "dead_neurons": int((profile.counts_LN == 0).sum()),
        "skipped_lines": done.skipped.lines,
        "resumed_tokens": done.resumed_tokens,
        "device": str(job.device),
        "tokens_per_s": counted / seconds if seconds > 0 else 0.0,
        "bitmaps": str(done.path.with_name("bitmaps.npz")) if job.bitmaps else None,
        "sampled": None if job.own is None else str(done.path.with_name("sampled.jsonl")),
    }


def find_profile(given: Path | None, own: Path | None) -> "ActivationProfile":
    """The profile of --profile, or the model's; ConfigError where there is neither."""
    from hotcold.runtime.profiles.profile import ActivationProfile

    path = given or own
    if path is None:
        raise ConfigError(
            "the model has no profile; make one with `hotcold profile` and give --profile"
        )
    return ActivationProfile.load(path)


def check_out(out: Path) -> None:
    """Refuse, by a ConfigError, a folder with files but no profile, finished or not."""
    from hotcold.runtime.offline.profiling.work import FOLDER
    from hotcold.runtime.profiles.profile import ActivationProfile

    if not out.exists():
        return
    target = out / FILE_NAME
    if target.exists():
        try:
            ActivationProfile.load(target)
        except CheckpointError as problem:
            raise ConfigError(
                f"--out {out} has a file {FILE_NAME} that is not a profile ({problem}); "
                "remove it or give another folder"
            ) from None
    elif any(out.iterdir()) and not (out / FOLDER).is_dir():
        raise ConfigError(
            f"--out {out} exists and is not a profile (it has files but no {FILE_NAME}); "
            "give another folder"
        )
