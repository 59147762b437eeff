"""The user's cache of converted models: one conversion at a time, nothing half-written.

    <cache>/bundles/<name>-<dtype>-<key>/        a bundle
    <cache>/bundles/.<name>-<dtype>-<key>.lock   held while it is converted
    <cache>/bundles/.<name>-<dtype>-<key>.tmp-*  a conversion under way, or left by a killed one

Called by `bundle.resolve_model`. A bundle appears by one rename, so that a reader needs no lock.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hotcold.native.errors import CheckpointError, ConfigError
from hotcold.runtime.model.architectures.hf_config import CONFIG
from hotcold.runtime.model.checkpoints.convert import (
    COMPANIONS,
    VERSION,
    fsync_path,
    powerinfer_counts,
)
from hotcold.runtime.model.checkpoints.huggingface import Checkpoint
from hotcold.runtime.model.checkpoints.tokenizer_files import SENTENCEPIECE

logger = logging.getLogger(__name__)


def cache_folder(cache: Path | None = None) -> Path:
    """The cache: the argument, $HOTCOLD_CACHE, $XDG_CACHE_HOME/hotcold or ~/.cache/hotcold.

    Raises:
        ConfigError: none of them is set and there is no home folder.
    """
    if cache is not None:
        return Path(cache).absolute()
    if os.environ.get("HOTCOLD_CACHE"):
        return Path(os.environ["HOTCOLD_CACHE"]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # its specification says to ignore a relative path
        return Path(base) / "hotcold"
    try:
        return Path.home() / ".cache" / "hotcold"
    except RuntimeError as error:
        raise ConfigError(
            "there is no home folder to cache converted models in; set HOTCOLD_CACHE"
        ) from error


def source_state(checkpoint: Checkpoint) -> list[list[Any]]:
    """Names, sizes and times of all files that a bundle is made of."""
    files = [checkpoint.folder / CONFIG, *checkpoint.weight_files()]
    files += [checkpoint.folder / name for name in (*COMPANIONS, SENTENCEPIECE)]
    if checkpoint.gguf is not None:
        files += powerinfer_counts(checkpoint.folder)
    try:
        stats = [(path.name, path.stat()) for path in files if path.is_file()]
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint.folder} changed while it was read ({error.strerror}); try again"
        ) from error
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def entry_name(checkpoint: Checkpoint) -> str:
    """Folder name of a checkpoint's bundle; another one once anything it depends on changes."""
    spec = checkpoint.spec
    source = str(checkpoint.folder.resolve())
    text = json.dumps([VERSION, source, source_state(checkpoint), spec.to_json()], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:20]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", checkpoint.folder.name)[:40].strip("-")
    return f"{name or 'model'}-{spec.neuron_format}-{key}"


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file lock; yields False at once where wait is false and someone else has it.

    The system releases it when its holder dies, however that happens. Lock files stay: removing one
    that another process just opened would let two hold "the" lock.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        begin, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            if not wait:
                yield False
                return
            if not said and time.monotonic() - begin > 2:
                said = True
                logger.info("waiting for another process that converts the same model (%s)", path)
            time.sleep(0.05)
        yield True
    finally:
        os.close(fd)


def _remove_leftovers(bundles: Path, own: str) -> None:
    """Remove temporary folders whose conversion is over; the caller holds the lock of `own`."""
    for leftover in bundles.glob(".*.tmp-*"):
        entry = leftover.name[1:].rsplit(".tmp-", 1)[0]
        if entry == own:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        with _locked(bundles / f".{entry}.lock", wait=False) as free:
            if free:
                shutil.rmtree(leftover, ignore_errors=True)


def _discard(path: Path, temporary: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        os.rename(path, temporary)
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fill(root: Path, entry: str, usable: Callable[[], bool], write: Callable[[Path], None]) -> None:
    """Make the bundle `entry` of a cache, unless another process has done so meanwhile.

    `usable`, asked under the lock, says whether the entry is there and intact; `write` writes a
    complete, durable bundle into the given new folder.

    Raises:
        ConfigError: the cache cannot be written; names HOTCOLD_CACHE.
    """
    bundles = root / "bundles"
    try:
        bundles.mkdir(parents=True, exist_ok=True)
        with _locked(bundles / f".{entry}.lock"):
            if usable():
                return
            _remove_leftovers(bundles, entry)
            temporary = bundles / f".{entry}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
            _discard(bundles / entry, temporary)
            try:
                temporary.mkdir()
                write(temporary)
                os.rename(temporary, bundles / entry)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            fsync_path(bundles)
    except OSError as error:
        raise ConfigError(
            f"cannot write the model cache {root}: {error.strerror or error}; set HOTCOLD_CACHE to "
            "a folder that can be written"
        ) from error
