"""Bundle: the folder hotcold runs a model from, and the way from any model name to one.

    bundle.json     format, version, spec, place of every tensor, checksums (its own included)
    weights.bin     neuron-major weights (layout.py), mapped by the weight store
    tokenizer.json  and its like; activations.npz, predictors.safetensors if the source has them

Called by everything that starts from a model: the driver, the command line, offline commands.
Opening a bundle reads the header and compares stamps; weights are read only when they may have
changed. Maps no memory.
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotcold.native.abi.names import DTYPES
from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.json_files import file_bytes, read_json_object, regular_file
from hotcold.runtime.model.architectures.limits import check_spec
from hotcold.runtime.model.checkpoints import cache as model_cache
from hotcold.runtime.model.checkpoints.convert import (
    COMPANIONS,
    FORMAT,
    HEADER,
    PREDICTORS,
    PROFILE,
    VERSION,
    WEIGHTS,
    Progress,
    check_companions,
    header_digest,
    model_checksum,
    stamp_new,
    write_bundle,
)
from hotcold.runtime.model.checkpoints.digest import (
    STAMP,
    file_digest,
    has_stamp,
    write_stamp,
)
from hotcold.runtime.model.checkpoints.huggingface import Checkpoint
from hotcold.runtime.model.checkpoints.layout import TensorEntry, layout
from hotcold.runtime.model.checkpoints.model_folder import model_folder
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec

logger = logging.getLogger(__name__)

__all__ = ["Bundle", "TensorEntry", "look_at", "open_bundle", "resolve_model"]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: checked metadata, no weights.

    `checksum` is the identity of the model (weights and spec), the same on every machine.
    """

    path: Path
    name: str
    spec: ModelSpec
    tensors: dict[str, TensorEntry]
    weights_bytes: int
    checksum: str
    source: str

    @property
    def weights_path(self) -> Path:
        """weights.bin."""
        return self.path / WEIGHTS

    @property
    def profile_path(self) -> Path | None:
        """The activation profile, where there is one."""
        path = self.path / PROFILE
        return path if regular_file(path) else None

    @property
    def predictors_path(self) -> Path | None:
        """The trained predictors, where there are any."""
        path = self.path / PREDICTORS
        return path if regular_file(path) else None

    @property
    def record(self) -> NeuronRecord:
        """Byte layout of this model's neurons."""
        return NeuronRecord.for_spec(self.spec)


def _corrupt(path: Path, text: str) -> CheckpointError:
    return CheckpointError(f"bundle {path}: {text}; convert it again from its source")


def _read_header(path: Path) -> dict[str, Any]:
    header = read_json_object(path / HEADER)
    if header.get("format") != FORMAT:
        raise _corrupt(path, f"{HEADER} says format {header.get('format')!r:.80}, not {FORMAT!r}")
    if header.get("version") != VERSION:
        raise _corrupt(
            path, f"it has version {header.get('version')!r:.80}, this hotcold reads {VERSION}"
        )
    if header.get("header_sha256") != header_digest(header):
        raise _corrupt(path, f"{HEADER} does not match its own checksum")
    return header


def _parse(path: Path, header: dict[str, Any]) -> tuple[Bundle, dict[str, tuple[int, str]]]:
    try:
        spec = ModelSpec.from_json(header["spec"])
        check_spec(spec)
        tensors, size = layout(spec)
        claimed = header["tensors"]
        files = {WEIGHTS: header["weights"], **header["files"]}
        sums = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
        checksum = model_checksum(spec, sums[WEIGHTS][1])
        name, source = str(header["name"]), str(header["source"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _corrupt(path, f"{HEADER} cannot be used ({error})") from error
    if claimed != {tensor: entry.to_json() for tensor, entry in tensors.items()}:
        raise _corrupt(path, f"the tensors in {HEADER} are not those its spec implies")
    if set(sums) - {WEIGHTS, *COMPANIONS}:
        raise _corrupt(path, f"{HEADER} lists files that do not belong to a bundle")
    if sums[WEIGHTS][0] != size or header.get("checksum") != checksum:
        raise _corrupt(path, f"size or checksum of {WEIGHTS} is not what its spec implies")
    return Bundle(path, name, spec, tensors, size, checksum, source), sums


def _stamps(path: Path, header: dict[str, Any], cache: Path | None) -> tuple[list[Path], str]:
    stamps = [path / STAMP]
    key = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()[:20]
    with suppress(ConfigError):
        stamps.append(model_cache.cache_folder(cache) / "verified" / f"{key}.json")
    return stamps, str(header["header_sha256"])


def _verify(path: Path, sums: dict[str, tuple[int, str]], stamps: list[Path], vouched: str) -> None:
    """Always check sizes; check contents unless a stamp says these very files were verified."""
    paths = {name: path / name for name in sums}
    for name, (size, _) in sums.items():
        if file_bytes(paths[name]) != size:
            raise _corrupt(
                path, f"{name} has {file_bytes(paths[name])} bytes where {HEADER} says {size}"
            )
    if has_stamp(stamps, vouched, paths):
        return
    for name, (_, sha256) in sums.items():
        if file_digest(paths[name], Progress(f"verifying {path}")) != sha256:
            raise _corrupt(path, f"{name} does not match its checksum")
    write_stamp(stamps, vouched, paths)


def open_bundle(path: Path, cache: Path | None = None, verify: bool = True) -> Bundle:
    """Open a bundle folder.

    Verifies every checksum when the files' sizes, times or inodes differ from those of the last
    verification, otherwise only the header.
    Where the folder cannot be written, a verification is remembered in `cache`. Without
    `verify`, the header alone is read.

    Raises:
        CheckpointError: it is incomplete, corrupt, or of another version.
    """
    path = Path(path).absolute()
    try:
        header = _read_header(path)
        bundle, sums = _parse(path, header)
        if verify:
            _verify(path, sums, *_stamps(path, header, cache))
    except OSError as error:
        raise _corrupt(path, f"cannot be read ({error.strerror or error})") from error
    return bundle


def source_folder(folder: Path) -> Path:
    """What a bundle was converted from, where that is still there, else the folder itself.

    For messages: the user knows the source, not the copy in the cache.
    """
    try:
        source = Path(str(read_json_object(folder / HEADER)["source"]))
    except (CheckpointError, KeyError):
        return folder
    return source if source.exists() else folder


def _cached(checkpoint: Checkpoint, cache: Path | None) -> Bundle:
    root = model_cache.cache_folder(cache)
    path = root / "bundles" / model_cache.entry_name(checkpoint)
    if regular_file(path / HEADER):
        try:
            return open_bundle(path, root)
        except CheckpointError:
            pass  # looked at again, and said, under the lock
    check_companions(checkpoint.folder)

    def usable() -> bool:
        if not path.exists():
            return False
        try:
            open_bundle(path, root)
        except CheckpointError as error:
            logger.warning("rebuilding a damaged bundle in the cache: %s", error)
            return False
        return True

    def write(folder: Path) -> None:
        before = model_cache.source_state(checkpoint)
        header = write_bundle(checkpoint, folder)
        if model_cache.source_state(checkpoint) != before:
            raise CheckpointError(f"{checkpoint.folder} changed while it was converted; try again")
        stamp_new(folder, header)

    model_cache.fill(root, path.name, usable, write)
    return open_bundle(path, root)


def resolve_model(
    model: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    cache: Path | None = None,
) -> Bundle:
    """The bundle of a model, converted into the cache if that has not happened yet.

    A `model` is None for the embedded model, a Hugging Face folder, a GGUF file or a bundle folder;
    a `dtype` of None is as stored, a `cache` of None $HOTCOLD_CACHE and so on.

    Raises:
        CheckpointError: the model cannot be used.
        ConfigError: the dtype is unknown, or not the bundle's own; or the cache cannot be written.
        BudgetError: the disk is too full for the bundle.
    """
    with _opened(model, dtype, cache, verify=True) as found:
        return found if isinstance(found, Bundle) else _cached(found, cache)


def look_at(
    model: str | os.PathLike[str] | None = None, dtype: str | None = None
) -> tuple[Path, ModelSpec]:
    """A model's folder and its spec, found usable; no weight is read and nothing converted.

    Raises:
        CheckpointError, ConfigError: as resolve_model does.
    """
    with _opened(model, dtype) as found:
        folder = found.path if isinstance(found, Bundle) else found.folder
        check_companions(folder)
        return folder, found.spec


@contextmanager
def _opened(
    model: str | os.PathLike[str] | None,
    dtype: str | None,
    cache: Path | None = None,
    verify: bool = False,
) -> Iterator[Bundle | Checkpoint]:
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r:.80} is unknown; choose one of {', '.join(DTYPES)}")
    folder = model_folder(model)
    if not regular_file(folder / HEADER):
        with closing(Checkpoint(folder, dtype)) as checkpoint:
            yield checkpoint
        return
    bundle = open_bundle(folder, cache, verify)
    if dtype not in (None, bundle.spec.neuron_format):
        raise ConfigError(
            f"bundle {folder} holds {bundle.spec.neuron_format}, dtype {dtype} was asked for; "
            f"convert it from its source ({bundle.source}) instead"
        )
    yield bundle
