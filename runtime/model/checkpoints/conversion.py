"""A bundle in a folder of one's own, for `hotcold convert`; the cache's are made by bundle.py."""

import os
import secrets
import shutil
from pathlib import Path

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.files.json_files import regular_file
from hotcold.runtime.model.checkpoints.bundle import Bundle, open_bundle
from hotcold.runtime.model.checkpoints.cache import source_state
from hotcold.runtime.model.checkpoints.convert import (
    HEADER,
    check_companions,
    stamp_new,
    write_bundle,
)
from hotcold.runtime.model.checkpoints.huggingface import Checkpoint
from hotcold.runtime.model.checkpoints.model_folder import model_folder


def convert_into(out: Path, model: str | os.PathLike[str] | None, dtype: str | None) -> Bundle:
    """Convert a checkpoint into a new folder, complete or not at all.

    `out` may be an empty folder, or not there. Model and dtype are as in `resolve_model`.

    Raises:
        CheckpointError: the model cannot be used, or is a bundle.
        ConfigError: the folder is not empty, or cannot be written.
        BudgetError: the disk is too full.
    """
    source, out = model_folder(model), out.expanduser().absolute()
    if regular_file(source / HEADER):
        raise CheckpointError(
            f"{source} is a bundle, which is not converted again; give the checkpoint it was made "
            "of"
        )
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there and no empty folder; remove it or give another name")
    checkpoint = Checkpoint(source, dtype)
    try:
        check_companions(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = out.with_name(f".{out.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        folder.mkdir()
        try:
            before = source_state(checkpoint)
            header = write_bundle(checkpoint, folder)
            if source_state(checkpoint) != before:
                raise CheckpointError(f"{source} changed while it was converted; try again")
            stamp_new(folder, header)
            os.replace(folder, out)  # onto an empty folder too
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"cannot write {out} ({error.strerror or error}); give a folder that can be written"
        ) from error
    finally:
        checkpoint.close()
    return open_bundle(out)
