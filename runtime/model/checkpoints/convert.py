"""Checkpoint -> bundle: neuron-major weights written once, in one pass, a block at a time.

Called by `bundle.resolve_model` under the cache's lock, into a temporary folder. Never holds more
than one down matrix and a few blocks of 64 MiB, whatever the size of the model.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hotcold.native.errors import BudgetError, CheckpointError
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import read_json_object
from hotcold.runtime.files.npz import unpack
from hotcold.runtime.files.reserve import NO_ROOM
from hotcold.runtime.model.checkpoints.digest import (
    RACY_NS,
    STAMP,
    DigestWriter,
    file_digest,
    write_stamp,
)
from hotcold.runtime.model.checkpoints.huggingface import BLOCK_BYTES, Checkpoint
from hotcold.runtime.model.checkpoints.layout import layout
from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.model.checkpoints.safetensors_file import read_header
from hotcold.runtime.model.checkpoints.tokenizer_files import (
    CONFIGS,
    MERGES,
    TOKENIZER,
    VOCAB,
    has_sentencepiece,
    has_tokenizer,
    read_tokenizer,
)
from hotcold.runtime.model.gguf.companions import companions_of, write_predictors
from hotcold.runtime.model.gguf.header import POWERINFER_MAGIC, has_magic, is_gguf
from hotcold.runtime.model.gguf.tensors import read_split
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.profiles.activation_pt import find_counts
from hotcold.runtime.profiles.profile import ActivationProfile

logger = logging.getLogger(__name__)

FORMAT = "hotcold-bundle"
VERSION = 1
HEADER, WEIGHTS = "bundle.json", "weights.bin"
PROFILE, PREDICTORS = "activations.npz", "predictors.safetensors"
COMPANIONS = (  # copied as they are where the checkpoint has them
    TOKENIZER,
    *CONFIGS,
    VOCAB,
    MERGES,
    "generation_config.json",
    "chat_template.jinja",
    PROFILE,
    PREDICTORS,
)
SPARE_BYTES = 64 << 20
PROFILE_LIMIT_BYTES = 1 << 32
LOG_EVERY_S = 2.0


class Progress:
    """Log lines about work that takes over two seconds.

    Args:
        what: the work, "converting llama".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._last = time.monotonic()
        self._said = False

    def __call__(self, done: int, total: int) -> None:
        """Log how far it is, if the last line is two seconds old."""
        now = time.monotonic()
        if now - self._last >= LOG_EVERY_S or (self._said and done == total):
            self._last, self._said = now, True
            logger.info(
                "%s: %d %% of %.2f GB", self._what, 100 * done // max(1, total), total / 1e9
            )


def header_digest(header: dict[str, Any]) -> str:
    """Checksum of bundle.json itself, over everything but this very entry."""
    body = {key: value for key, value in header.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def model_checksum(spec: ModelSpec, weights_sha256: str) -> str:
    """Identity of a model: the same on every machine, whatever path it was converted from."""
    text = json.dumps([VERSION, spec.to_json(), weights_sha256], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Make a file, or the entries of a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_neurons(checkpoint: Checkpoint, layer: int, out: DigestWriter) -> None:
    spec = checkpoint.spec
    record = NeuronRecord.for_spec(spec)
    for given in checkpoint.neurons(layer, max(1, BLOCK_BYTES // record.bytes)):
        records = np.zeros((len(given["gate"]), record.bytes), np.uint8)
        for part in record.parts:
            try:
                rows, dtype = given[part.name], "float32" if part.name == "bias" else spec.dtype
                records[:, part.slice] = STORED[part.format].pack(rows, dtype)
            except OverflowError as error:
                raise CheckpointError(
                    f"{part.name} rows of layer {layer} of {checkpoint.folder}: {error}; convert "
                    f"without dtype {part.format}"
                ) from error
        out.write(records.reshape(-1).data)


def _write_weights(checkpoint: Checkpoint, path: Path, name: str) -> tuple[str, int]:
    entries, total = layout(checkpoint.spec)
    progress = Progress(f"converting {name}")
    with path.open("wb") as file:
        out = DigestWriter(file)
        for tensor, entry in entries.items():
            out.write(memoryview(bytes(entry.offset - out.written)))
            if tensor.endswith(".neurons"):
                _write_neurons(checkpoint, int(tensor.split(".")[1]), out)
            else:
                for rows in checkpoint.tensor(tensor):
                    out.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
            progress(out.written, total)
        out.write(memoryview(bytes(total - out.written)))
        file.flush()
        os.fsync(file.fileno())
    return out.hexdigest(), total


def powerinfer_counts(path: Path) -> list[Path]:
    """The activation counts beside a PowerInfer GGUF file; none beside any other."""
    return find_counts(path.parent) if has_magic(path, POWERINFER_MAGIC) else []


def check_companions(folder: Path) -> None:
    """Check what a bundle takes along from a checkpoint, before anything is converted.

    Raises:
        CheckpointError: a tokenizer, profile or predictors that cannot be read; names the file.
    """
    if is_gguf(folder):
        companions_of(read_split(folder))
        return
    for name in CONFIGS:
        if os.path.lexists(folder / name):
            read_json_object(folder / name)
    if has_tokenizer(folder) and not has_sentencepiece(
        folder
    ):  # without one, token ids can still be run
        read_tokenizer(folder)
    profile = folder / PROFILE
    if os.path.lexists(profile):
        try:
            unpack(profile.read_bytes(), PROFILE_LIMIT_BYTES)
        except (OSError, ValueError) as error:
            what = impostor(profile) or f"is no activation profile ({str(error)[:200]})"
            way_out = "; make it again with `hotcold profile`, or remove it"
            raise CheckpointError(f"{profile} {what}{way_out}") from error
    if os.path.lexists(folder / PREDICTORS):
        read_header(folder / PREDICTORS)


def companions(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of what lies beside the weights, by name."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in COMPANIONS
        if (folder / name).is_file()
    }


def _copy_companions(checkpoint: Checkpoint, folder: Path) -> None:
    source, gguf = checkpoint.folder, checkpoint.gguf
    if gguf is not None:
        for name, text in companions_of(gguf.header).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_predictors(gguf, checkpoint.spec.n_layers, folder / PREDICTORS)
        if powerinfer_counts(source):
            profile = ActivationProfile.load(source.parent)
            profile.check_fits(checkpoint.spec)
            profile.save(folder / PROFILE)
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if has_sentencepiece(source):
        with suppress(CheckpointError):  # said to whoever gives it text
            (folder / TOKENIZER).write_text(read_tokenizer(source).to_str(), encoding="utf-8")
    for name in COMPANIONS:
        if (folder / name).is_file():
            fsync_path(folder / name)


def _too_full(name: str, total: int, folder: Path, error: OSError | None = None) -> BudgetError:
    """What a bundle takes and what there is; what is written already counts as free again."""
    free = shutil.disk_usage(folder).free
    if error is not None and (folder / WEIGHTS).is_file():
        free += (folder / WEIGHTS).stat().st_blocks * 512
    why = f" ({error.strerror})" if error is not None else ""
    return BudgetError(
        f"the bundle of {name} takes {total / 1e9:.2f} GB ({total} bytes), the disk of "
        f"{folder.parent} has {free / 1e9:.2f} GB free ({free} bytes){why}; make room or set "
        "HOTCOLD_CACHE to a folder on another disk"
    )


def write_bundle(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Write a complete bundle into an existing empty folder, durable when it returns.

    Returns what bundle.json holds.

    Raises:
        BudgetError: the disk is too full.
        CheckpointError: the checkpoint turned out unreadable.
        OSError: the folder cannot be written.
    """
    spec, name = checkpoint.spec, checkpoint.folder.name
    total = layout(spec)[1]
    free = shutil.disk_usage(folder).free
    if free < total + SPARE_BYTES:
        raise _too_full(name, total, folder)
    if checkpoint.gguf is not None:
        checkpoint.gguf.say_cost()
    try:
        weights = _write_weights(checkpoint, folder / WEIGHTS, name)
        _copy_companions(checkpoint, folder)
        return write_header(folder, spec, name, str(checkpoint.folder), weights)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise _too_full(name, total, folder, error) from error


def write_header(
    folder: Path,
    spec: ModelSpec,
    name: str,
    source: str,
    weights: tuple[str, int],
) -> dict[str, Any]:
    """Write bundle.json, the last file of a bundle, durable when it returns.

    The companions are in the folder; `weights` is checksum and size of weights.bin. Returns what
    bundle.json holds.
    """
    sha256, size = weights
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "source": source,
        "checksum": model_checksum(spec, sha256),
        "spec": spec.to_json(),
        "record": asdict(NeuronRecord.for_spec(spec)),
        "weights": {"bytes": size, "sha256": sha256},
        "tensors": {tensor: entry.to_json() for tensor, entry in layout(spec)[0].items()},
        "files": companions(folder),
    }
    header = json.loads(json.dumps(header))  # as it will be read: tuples are lists
    header["header_sha256"] = header_digest(header)
    (folder / HEADER).write_text(json.dumps(header, indent=1), encoding="ascii")
    fsync_path(folder / HEADER)
    fsync_path(folder)
    return header


def stamp_new(folder: Path, header: dict[str, Any]) -> None:
    """Vouch for a bundle that was just written, so that the first opening reads no weights."""
    time.sleep(2 * RACY_NS / 1e9)  # so that the stamp is accepted
    paths = {name: folder / name for name in (WEIGHTS, *header["files"])}
    write_stamp([folder / STAMP], header["header_sha256"], paths)
