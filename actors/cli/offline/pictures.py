"""`hotcold pictures`: a model's activations and predictors as PNG files and one HTML page."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hotcold.actors.cli.common import output
from hotcold.actors.cli.common.options import engine_options, json_option, out_option
from hotcold.actors.cli.offline.profile import find_profile
from hotcold.native.errors import CheckpointError
from hotcold.runtime.options.config import EngineConfig

if TYPE_CHECKING:
    from hotcold.runtime.model.checkpoints.bundle import Bundle
    from hotcold.runtime.offline.pictures.curves import Scene
    from hotcold.runtime.offline.pictures.page import Picture

PAGE = "pictures.html"
_path = partial(click.option, metavar="PATH", type=click.Path(exists=True, path_type=Path))


@click.command("pictures")
@_path(
    *("--profile", "profile_path"),
    help="Counts made by `hotcold profile`.  [default: those that come with the model]",
)
@_path(
    *("--predictors", "predictors_path"),
    help="Folder or file of `hotcold train-predictors`.  [default: the model's, if any]",
)
@out_option(f"Folder for the PNG files and {PAGE}; made if it is not there.")
@json_option
@engine_options("pictures", argument=True)
def command(
    options: EngineConfig,
    profile_path: Path | None,
    predictors_path: Path | None,
    out: Path,
) -> None:
    """Draw how MODEL's activations are spread, and how large and how good its predictors are.

    MODEL is a folder; without one, the embedded model. The page holds all pictures and needs no
    network. Predictors that were calibrated also give recall by density.
    """
    from hotcold.runtime.model.checkpoints.bundle import resolve_model
    from hotcold.runtime.offline.pictures.draw import check_matplotlib
    from hotcold.runtime.offline.pictures.page import page

    check_matplotlib()
    bundle = resolve_model(options.model, options.dtype)
    scene = make_scene(bundle, profile_path, predictors_path)
    pictures = draw_all(scene)
    files = {f"{picture.name}.png": picture.png for picture in pictures}
    output.write_files(out, "pictures", {**files, PAGE: page(scene, pictures).encode()})
    for name in [*files, PAGE]:
        click.echo(out / name)
    output.emit_json({"page": str(out / PAGE), "pictures": [str(out / name) for name in files]})


def make_scene(
    bundle: "Bundle", profile_path: Path | None, predictors_path: Path | None
) -> "Scene":
    """What is to be drawn, read and checked against the model.

    Raises:
        CheckpointError: a file that cannot be read or belongs to another model.
        ConfigError: the model has no profile and none was given.
    """
    from hotcold.runtime.offline.pictures.curves import Scene, predictor_facts
    from hotcold.runtime.predictors.predictor_file import load_predictors

    profile = find_profile(profile_path, bundle.profile_path)
    profile.check_model(bundle.spec, bundle.checksum)
    path = predictors_path or bundle.predictors_path
    if path is None:
        return Scene(bundle.name, profile)
    file = load_predictors(path, bundle.spec)
    facts = predictor_facts(file, _measured(path, bundle.spec.n_layers))
    return Scene(bundle.name, profile, tuple(facts), path.name)


def _measured(path: Path, layers: int) -> list[tuple[float, float]]:
    """Recall and density of every layer from the report of their training; [] without one.

    Raises:
        CheckpointError: a report that is damaged, or of other predictors.
    """
    from hotcold.actors.cli.offline.train_predictors import REPORT
    from hotcold.runtime.files.json_files import read_json_object, regular_file

    report = (path if path.is_dir() else path.parent) / REPORT
    if not regular_file(report):
        return []
    try:
        rows: list[dict[str, Any]] = read_json_object(report)["layers"]
        found = [(float(row["recall"]), float(row["density"])) for row in rows]
        fine = all(0 <= value <= 1 for pair in found for value in pair)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{report} is not a report of training ({error!r:.80})") from error
    if len(found) != layers or not fine:
        raise CheckpointError(
            f"{report} reports {len(found)} layers, the model has {layers}; it is of other "
            "predictors, or damaged"
        )
    return found


_PICTURES = {
    "activation_share": (
        "Share of activations by share of neurons",
        "Neurons are ranked by how often they fire. The further a line bows to the upper left, the "
        "fewer neurons make up most activations (Figure 5 of the PowerInfer paper).",
    ),
    "sparsity": (
        "Sparsity of each layer",
        "Share of a layer's neurons that stay silent for a token: mean over tokens and, where the "
        "profile has it, the range that 90 % of the tokens lie in.",
    ),
    "predictor_size": (
        "Predictor size by sparsity",
        "Bytes of each layer's predictor. By the paper's rule (its Figure 9) sparser layers and "
        "those whose activations come from few neurons need smaller ones.",
    ),
    "recall_density": (
        "Recall by density",
        "How many of the firing neurons a predictor finds, by how many it proposes, on the text "
        "that set its thresholds. Up and to the left is better.",
    ),
}


def draw_all(scene: "Scene") -> "list[Picture]":
    """The pictures there is something to draw for."""
    from hotcold.runtime.offline.pictures import draw
    from hotcold.runtime.offline.pictures.page import Picture

    wanted: dict[str, Callable[[Scene], Any]] = {
        "activation_share": draw.draw_activation_share,
        "sparsity": draw.draw_sparsity,
    }
    if scene.predictors:
        wanted["predictor_size"] = draw.draw_predictor_size
    if any(facts.curve is not None for facts in scene.predictors):
        wanted["recall_density"] = draw.draw_recall_density
    return [
        Picture(name, *_PICTURES[name], draw.png(drawing, scene))
        for name, drawing in wanted.items()
    ]
