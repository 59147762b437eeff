"""`hotcold profile`: how often each neuron fires over a text, the placement policies' input."""

from pathlib import Path

import click

from hotcold.runtime.cli import output
from hotcold.runtime.cli.inspect import sparsity_table
from hotcold.runtime.cli.options import (
    choose_model,
    debug_option,
    dtype_option,
    json_option,
    model_option,
)
from hotcold.runtime.errors import CheckpointError, ConfigError

FILE_NAME = "activations.npz"
MAX_TEXT_BYTES = 1 << 30


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
    contents = [read_text(path) for path in texts]
    from hotcold.runtime.formats.bundle import resolve_model
    from hotcold.runtime.profile import profile_text

    bundle = resolve_model(choose_model(folder, model), dtype)
    progress = output.Progress("profiling", "tokens")
    try:
        profile = profile_text(
            bundle, contents, max_tokens=max_tokens, threads=threads, progress=progress
        )
    finally:
        progress.close()
    out.mkdir(parents=True, exist_ok=True)
    target = out / FILE_NAME
    profile.save(target)
    sparsity_L = [float(1 - row.mean()) for row in profile.probabilities_LN]
    click.echo(f"{output.count(profile.tokens)} tokens; counts in {target}")
    click.echo(sparsity_table(sparsity_L))
    if as_json:
        output.emit_json(
            {"profile": str(target), "tokens": profile.tokens, "sparsity_L": sparsity_L}
        )


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


def read_text(path: Path) -> str:
    """A text file, checked.

    Raises:
        ConfigError: empty, too large, unreadable or not UTF-8.
    """
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_TEXT_BYTES:
            raise ConfigError(
                f"--text {path} has {n_bytes} bytes, at most {MAX_TEXT_BYTES} are read; cut it"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as problem:
        raise ConfigError(
            f"--text {path} is not UTF-8 (offset {problem.start}); convert it, with iconv for "
            "example"
        ) from None
    except OSError as problem:
        raise ConfigError(f"--text {path} cannot be read: {problem.strerror}") from None
    if not text.strip():
        raise ConfigError(f"--text {path} is empty; give a text to count over")
    return text
