"""Train a ReLU model whose neurons are mostly silent on your text, or make one from a SwiGLU model.

Writes a Hugging Face folder that `hotcold generate --model DIR` and `transformers` load, with a
report of perplexity and activations. RECIPE.md beside this file explains what happens and what to
change. An interrupted training resumes when it is started again with the same options.

Run: python examples/06_train_relu_model.py --text book.txt --out my-model
     python examples/06_train_relu_model.py --text book.txt --from swiglu-model --out my-model
"""

import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from relu_recipe.model import check_source, load_model, new_model, put_gates, read_json
from relu_recipe.recipe import DTYPES, Recipe
from relu_recipe.result import REPORT, export, measure, report, table
from relu_recipe.state import FILE_NAME as STATE
from relu_recipe.state import only_one
from relu_recipe.text import TokenWindows, prepare_text
from relu_recipe.training import Stopped, Trainer

from hotcold.actors.cli.common import output
from hotcold.native.errors import ConfigError, HotcoldError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.text.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
TRIAL_MINUTES = 0.25  # of a trial without --text
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="FILE",
    type=FILE,
    help="Text to learn from, UTF-8; may be repeated.  [default: a short trial on this "
    "repository's own]",
)
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default="relu-model")
@click.option(
    "--validation",
    multiple=True,
    metavar="FILE",
    type=FILE,
    help="Text to report on.  [default: one window in 20 of --text]",
)
@click.option(
    "--from",
    "source",
    metavar="DIR",
    type=FOLDER,
    help="Llama checkpoint to start from; SwiGLU becomes ReLU.  [default: from scratch]",
)
@click.option("--distill", default=0.0, help="Weight of its own predictions in the loss, 0 to 1.")
@click.option("--sparsity", default=0.9, help="Share of silent neurons to reach; 0: no charge.")
@click.option("--contrast", default=1.0, help="How much less hot neurons are charged; 0: alike.")
@click.option("--guard", default=0.002, help="Neurons that fire less than this are helped.")
@click.option("--steps", default=0, help="Updates; 0: as many as fit into --minutes.")
@click.option("--minutes", type=float, help="Time for the updates.  [default: 4]")
@click.option("--layers", default=4)
@click.option("--d-model", default=128)
@click.option("--ffn", default=512, help="Neurons of a layer.")
@click.option("--heads", default=0, help="0: one for each 32 of --d-model.")
@click.option("--vocab", default=2048, help="Tokens of a new tokenizer.")
@click.option("--act", "activation", default="relu", help="silu: a dense model, to try --from on.")
@click.option("--context", default=256, help="Tokens of a window.")
@click.option("--batch", default=16, help="Windows of an update.")
@click.option("--rows", default=0, help="Windows computed at a time; 0: all of --batch.")
@click.option("--rate", default=0.0, help="Learning rate; 0: 2e-3, with --from 3e-4.")
@click.option("--decay", default=0.1, help="Weight decay of matrices.")
@click.option("--save-every", default=50, help="Updates between checkpoints.")
@click.option("--report-tokens", default=65536, help="Tokens of the report at most.")
@click.option(
    "--dtype", help=f"Of the result: {', '.join(DTYPES)}.  [default: float16, with --from its own]"
)
@click.option("--device", default="auto", help="cpu, cuda or auto.")
@click.option("--threads", type=int, help="Of torch.  [default: its own choice]")
@click.option("--seed", default=1)
@click.option("--overwrite", is_flag=True, help="Forget what --out holds of earlier trainings.")
@click.option("--json", "as_json", is_flag=True, help="End with the report as one JSON line.")
def command(device: str, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Train a ReLU model with rare activations, or turn a SwiGLU model into one."""
    given["texts"] = given["texts"] or own_texts()
    if given["minutes"] is None:
        own = given["texts"] == own_texts()
        given["minutes"] = TRIAL_MINUTES if own else Recipe.minutes
    recipe = Recipe(**given)
    chosen = choose_device(device)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    check_out(recipe.out, overwrite)
    source_dtype = None if recipe.source is None else check_source(recipe.source)
    unused = not recipe.work.exists()
    try:
        with only_one(recipe.work):
            prepare(recipe, overwrite)
            windows = prepare_text(recipe)
            seen, held = windows.train_WT.size, windows.report_WT.size
            output.note(f"{seen:,} tokens to train on, {held:,} to report on")
            result = train(recipe, windows, chosen, recipe.dtype or source_dtype or "float16")
    except HotcoldError:
        if unused:
            forget(recipe)
        raise
    shutil.rmtree(recipe.work)
    click.echo(table(result))
    output.note(f"model in {recipe.out}, report in {recipe.out / REPORT}")
    if as_json:
        output.emit_json(result)


def forget(recipe: Recipe) -> None:
    """Remove what is left of a training that could not begin; one with a checkpoint stays."""
    if (recipe.work / STATE).exists():
        return
    shutil.rmtree(recipe.work, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: it was there before
        recipe.out.rmdir()


def own_texts() -> tuple[Path, ...]:
    """Text that every checkout has: this project's own documents and sources."""
    root = HERE.parent
    return tuple(sorted([*root.glob("*.md"), *root.glob("*/*.md"), *root.glob("runtime/**/*.py")]))


def choose_device(name: str) -> str:
    """A device torch has."""
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device {name!r} is unknown; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here; leave it out")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse an output that is a file, a finished model, or a folder of something else."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder")
    if not out.exists() or (out / ".training").is_dir():
        return
    names = {path.name for path in out.iterdir()}
    if REPORT in names:
        if not overwrite:
            raise ConfigError(f"--out {out} holds a finished model; give --overwrite or another")
    elif names:
        raise ConfigError(
            f"--out {out} holds other files ({min(names)}); give a new or empty folder"
        )


def prepare(recipe: Recipe, overwrite: bool) -> None:
    """Note in the work folder what is trained there, and refuse to resume anything else."""
    path, plan = recipe.work / "plan.json", json.loads(json.dumps(recipe.plan()))
    if overwrite:
        for old in recipe.work.iterdir():
            if old.name != "lock":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    found = read_json(path)
    changed = sorted(name for name in plan if found.get(name) != plan[name])
    if found and changed:
        name = {"texts": "text", "source": "from", "activation": "act"}.get(changed[0], changed[0])
        raise ConfigError(
            f"{recipe.out} holds an unfinished training with another --{name.replace('_', '-')}; "
            "give the same options, another --out, or --overwrite"
        )
    write_atomically(path, json.dumps(plan).encode())


def train(recipe: Recipe, windows: TokenWindows, device: str, dtype: str) -> dict[str, Any]:
    """Model, updates, folder and report."""
    if recipe.source is None:
        model = new_model(recipe, Tokenizer.load(recipe.work).vocab_size).to(device)
    else:
        model = load_model(recipe.source).to(device)
    begun = recipe.work / "begun.json"
    started: dict[str, Any] = read_json(begun) or {"before": {}}
    first = not started["before"]
    if first and recipe.source is not None:
        started["before"]["source_perplexity"] = measure(model, windows.report_WT, False).perplexity
    teacher = load_model(recipe.source).to(device).eval() if recipe.distill else None  # type: ignore[arg-type]
    gates = put_gates(model) if recipe.activation == "relu" else []
    if first:
        found = measure(model, windows.report_WT, bool(gates))
        started["before"]["perplexity"] = found.perplexity
        if gates:
            started["before"]["density"] = found.density
    trainer = Trainer(recipe, model, gates, teacher, windows, recipe.steps or 1)
    if "steps" not in started:
        started["steps"] = recipe.steps or max(
            20, int(60 * recipe.minutes / trainer.seconds_an_update())
        )
        write_atomically(begun, json.dumps(started).encode())
    trainer = Trainer(recipe, model, gates, teacher, windows, started["steps"])
    if trainer.resume():
        output.note(f"going on after update {trainer.step:,}")
    parameters = sum(value.numel() for value in model.parameters())
    output.note(f"{parameters:,} parameters, {trainer.steps:,} updates on {device}")
    trainer.run(output.note)
    export(model, recipe, dtype)
    return report(recipe, started["before"], windows.report_WT, trainer.steps, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and turn every way it can end into an exit code as hotcold's own commands do."""
    args = None if argv is None else list(argv)
    try:
        command.main(args, standalone_mode=False, prog_name="06_train_relu_model.py")
    except Stopped as stopped:
        output.note(f"{stopped}; the same command resumes there")
        return 130 if stopped.signal == signal.SIGINT else 143
    except (click.Abort, KeyboardInterrupt):
        output.note("interrupted; the same command resumes from the last checkpoint")
        return 130
    except click.ClickException as problem:
        output.error(problem.format_message())
        return 2
    except HotcoldError as problem:
        output.error(str(problem))
        return problem.exit_code
    except (OSError, RuntimeError) as problem:
        output.error(f"{type(problem).__name__}: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
