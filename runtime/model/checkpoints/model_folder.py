"""From what a user typed as a model to the folder that holds it, or to a sentence that helps.

Called by `bundle.resolve_model`. Where a folder is no model but leads to one (the cache of
Hugging Face keeps models under snapshots/, trainers under checkpoint-*/), the sentence says which.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime import embedded
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import regular_file
from hotcold.runtime.model.architectures.hf_config import CONFIG
from hotcold.runtime.model.checkpoints.convert import HEADER
from hotcold.runtime.model.checkpoints.weight_files import ADAPTER, listing, no_adapter
from hotcold.runtime.model.gguf.header import is_gguf
from hotcold.runtime.model.gguf.tensors import split_files


def model_folder(model: str | os.PathLike[str] | None) -> Path:
    """The folder a model name stands for, with a config.json or a bundle.json; or a GGUF file.

    Raises:
        CheckpointError: it does not exist, or is something else; says what, and where a model is.
        ConfigError: an empty name.
    """
    if model is None:
        return embedded.path()
    if not str(model):
        raise ConfigError("the model is an empty string; give a folder, or nothing at all")
    try:
        folder = Path(model).expanduser()
        is_folder, is_there = folder.is_dir(), folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot look at model {str(model)!r:.300}: {error}") from error
    if is_there and not is_folder:
        if is_gguf(folder):
            return split_files(folder.absolute())[0]
        raise _is_file(folder)
    if not is_there:
        raise _is_nothing(str(model))
    folder = folder.absolute()
    if file := _only_gguf(folder):
        return file
    if not regular_file(folder / HEADER) and not regular_file(folder / CONFIG):
        raise CheckpointError(next(_no_model(folder)))
    return folder


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds one model, and that as GGUF."""
    if regular_file(folder / HEADER) or any(folder.glob("*.safetensors")):
        return None
    found = sorted(folder.glob("*.gguf"))  # not .gguf.part
    firsts = {split_files(path)[0] for path in found}
    return firsts.pop() if len(firsts) == 1 else None


def _is_file(path: Path) -> CheckpointError:
    what = impostor(path)
    if regular_file(path.parent / CONFIG):
        return CheckpointError(f"{path} is a file of a model; give its folder, {path.parent}")
    if "zip" in what or "compressed" in what:
        return CheckpointError(f"{path} is an archive or a pickle; unpack it and give the folder")
    return CheckpointError(f"{path} is a file; give the folder that holds {CONFIG}")


def _is_nothing(model: str) -> CheckpointError:
    """Nothing by that name: it may be one of Hugging Face's, downloaded or not."""
    if Path(model).suffix.lower() == ".gguf":
        return CheckpointError(f"{model:.300} does not exist; check the path")
    owner, slash, name = model.partition("/")
    is_id = bool(slash and owner and name) and not set(model) & set("\\~ ") and "/" not in name
    if is_id and not model.startswith("."):
        for cache in _caches():
            found = _snapshots(cache / f"models--{owner}--{name}")
            if found:
                return CheckpointError(
                    f"model {model!r:.300} is no folder here, but was downloaded; give {found[0]}"
                )
    example = f"`hf download {model} --local-dir DIR`" if is_id else "`hf download`"
    return CheckpointError(
        f"model {model!r:.300} does not exist; give a Hugging Face folder or a bundle on this "
        f"machine (download a model first, for example with {example})"
    )


def _caches() -> list[Path]:
    places = [os.environ.get(name) for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")]
    homes = [os.environ.get("HF_HOME"), "~/.cache/huggingface"]
    try:
        found = [Path(place).expanduser() for place in places if place]
        return found + [Path(home).expanduser() / "hub" for home in homes if home]
    except RuntimeError:  # no home folder
        return []


def _models(folder: Path, pattern: str) -> list[Path]:
    try:
        found = [path.parent for path in folder.glob(f"{pattern}/{CONFIG}") if regular_file(path)]
        return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path))
    except OSError:
        return []


def _snapshots(repository: Path) -> list[Path]:
    main = ""
    if regular_file(repository / "refs" / "main"):
        main = (repository / "refs" / "main").read_text(errors="replace").strip()
    return sorted(_models(repository, "snapshots/*"), key=lambda path: path.name != main)


def _no_model(folder: Path) -> Iterator[str]:
    """Why a folder without config.json is no model, and where one may be; the best reason first."""
    if what := impostor(folder / CONFIG):
        yield f"{folder / CONFIG} {what}"
    if regular_file(folder / ADAPTER):
        yield no_adapter(folder)
    if snapshots := _snapshots(folder):
        yield (
            f"{folder} is a repository of the Hugging Face cache; the model is below it, give "
            f"{snapshots[0]}"
        )
    if (folder / "snapshots").is_dir():
        yield (
            f"{folder} is a repository of the Hugging Face cache without a {CONFIG} in any "
            "snapshot: its download did not finish; run `hf download` again"
        )
    if below := [*_models(folder, "*"), *_models(folder, "models--*/snapshots/*")]:
        others = listing([str(path.relative_to(folder)) for path in below[1:]], 2)
        rest = f"; others there: {others}" if others else ""
        yield f"{folder} is no model, but holds one: give {below[0]}{rest}"
    names = sorted(path.name for path in folder.iterdir()) if os.access(folder, os.R_OK) else []
    if gguf := [name for name in names if name.lower().endswith(".gguf")]:
        yield f"{folder} holds more than one model as GGUF ({listing(gguf)}); give one of the files"
    if "params.json" in names and any(name.startswith("consolidated") for name in names):
        yield (
            f"{folder} holds a model in Meta's own format (params.json); download the repository "
            "whose name ends in -hf, or convert it with transformers' "
            "convert_llama_weights_to_hf.py"
        )
    holds = f"it holds {listing(names)}" if names else "it is empty"
    yield (
        f"{folder} holds no {CONFIG}, so it is neither a Hugging Face checkpoint nor a bundle "
        f"({holds}); give the folder that does"
    )
