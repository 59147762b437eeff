"""`hotcold profile`: how often each neuron fires over a text, the placement policies' input."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.options import (
    choose_model,
    debug_option,
    dtype_option,
    json_option,
    model_option,
)
from hotcold.runtime.config import EngineConfig, Sampling
from hotcold.runtime.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from hotcold.runtime.profile import ActivationProfile

FILE_NAME = "activations.npz"


@click.command("profile")
@click.argument("folder", required=False, metavar="[MODEL]")
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A text to count over, in UTF-8; may be repeated.",
)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help=f"Folder for {FILE_NAME}; made if it is not there.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="Stop after so many tokens.  [default: all]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to count with.")
@model_option
@dtype_option
@json_option
@debug_option
def command(
    folder: str | None,
    model: str | None,
    texts: tuple[Path, ...],
    out: Path,
    max_tokens: int | None,
    threads: int | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Count how often each neuron of MODEL fires over the texts.

    MODEL is a folder; without one, the embedded model. The counts are exact: every gate row is
    evaluated for every token.
    """
    check_out(out)
    config = EngineConfig(
        model=choose_model(folder, model), dtype=dtype, threads=threads, predictor="exact"
    )
    profile = count_firing(config, texts, max_tokens)
    out.mkdir(parents=True, exist_ok=True)
    target = out / FILE_NAME
    profile.save(target)
    click.echo(profile.summary())
    output.note(f"counts in {target}")
    if as_json:
        sparsity_L = [float(share) for share in profile.sparsity_L]
        output.emit_json(
            {"profile": str(target), "tokens": profile.tokens, "sparsity_L": sparsity_L}
        )


def count_firing(
    config: EngineConfig, texts: Sequence[Path], max_tokens: int | None
) -> "ActivationProfile":
    """Run the texts through the model in this process, without Ray, and count every fired gate.

    Raises:
        HotcoldError: a model or text that cannot be used.
    """
    import numpy as np

    from hotcold.policies.placement.greedy import Greedy
    from hotcold.runtime.deployment import deploy, prepare_model, solve
    from hotcold.runtime.profile import ActivationProfile, profile_text
    from hotcold.runtime.session import LocalSession

    prepared = prepare_model(config)
    spec, checksum = prepared.bundle.spec, prepared.bundle.checksum
    fired_LN = np.zeros((spec.n_layers, spec.n_neurons), np.int64)
    # One token is sampled after each window, which needs no pass of its own: what is counted is
    # the window and nothing else.
    sampling = Sampling(max_tokens=1, ignore_eos=True)
    progress = output.Progress("profiling", "tokens")
    with LocalSession(deploy(prepared, solve(prepared, Greedy())), fired_LN) as session:
        try:
            tokens = profile_text(
                texts,
                session.text.tokenizer,
                lambda ids: deque(session.sample(ids, sampling), maxlen=0).clear(),
                context=prepared.context,
                max_tokens=max_tokens,
                progress=progress,
            )
        finally:
            progress.close()
    source = ", ".join(path.name for path in texts)
    return ActivationProfile(fired_LN, tokens, checksum, source)


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else than an earlier profile.

    Raises:
        ConfigError: it is a file, or has files but no profile, or its profile is not one.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    target = out / FILE_NAME
    if target.exists():
        from hotcold.runtime.profile import ActivationProfile

        try:
            ActivationProfile.load(target)
        except CheckpointError as problem:
            raise ConfigError(
                f"--out {out} has a file {FILE_NAME} that is not a profile ({problem}); "
                "remove it or give another folder"
            ) from None
    elif any(out.iterdir()):
        raise ConfigError(
            f"--out {out} exists and is not a profile (it has files but no {FILE_NAME}); "
            "give another folder"
        )
