"""The folder of an unfinished profile: what is being counted, and the state after the last unit.

`job.json` says what the profile is of, `state.npz` holds the sums after the last whole unit and a
chain of digests over its windows, `bitmaps.bin` the bits of a recording. To resume, the text is
read again from the start and the windows already counted are compared with the digests, so that the
result is that of an uninterrupted run, bit for bit. A file lock keeps a second run out.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.files.atomic import write_atomically
from hotcold.runtime.files.npz import pack, unpack
from hotcold.runtime.offline.profiling.tally import Tally

FOLDER = ".profiling"
BITS = "bitmaps.bin"
_JOB, _STATE, _LOCK = "job.json", "state.npz", "lock"
_STATE_LIMIT = 2**34
Unit = tuple[list[list[int]], int]  # windows, and the bytes of text read until their end


@dataclass
class State:
    """All that is known after some whole units.

    Args:
        tally: the sums.
        lengths: of the windows.
        chain: digest of all their ids; "" before the first.
    """

    tally: Tally
    lengths: list[int]
    chain: str = ""

    def link(self, windows: Sequence[Sequence[int]]) -> str:
        """The chain with these windows added."""
        digest = hashlib.sha256(self.chain.encode())
        for window in windows:
            digest.update(np.asarray(window, np.int64).tobytes() + b"|")
        return digest.hexdigest()

    def add(self, windows: Sequence[Sequence[int]], tally: Tally) -> None:
        """Add what a unit's windows gave."""
        self.chain = self.link(windows)
        self.lengths += [len(window) for window in windows]
        self.tally.add(tally)


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it however this process ends.

    Raises:
        ConfigError: another process holds it.
    """
    with open(work / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another profile is being made in {work.parent}; wait for it or give another --out"
            ) from None
        yield


def begin(work: Path, identity: dict[str, Any], unit_tokens: int) -> int:
    """Start a job, or find it begun.

    Args:
        work: the folder.
        identity: what the result depends on, as plain data.
        unit_tokens: of a unit, if the job starts now.

    Returns:
        Tokens of a unit: those the job was begun with, since sums depend on them in the last bit.

    Raises:
        ConfigError: another job was begun in the folder.
    """
    path = work / _JOB
    try:
        found = json.loads(path.read_bytes())
        before, unit = dict(found["job"]), int(found["unit_tokens"])
    except FileNotFoundError:
        for old in work.iterdir():
            if old.name != _LOCK:
                old.unlink()
        text = json.dumps({"job": identity, "unit_tokens": unit_tokens}, indent=1)
        write_atomically(path, text.encode())
        return unit_tokens
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} of an interrupted profile is damaged ({error}); remove {work}"
        ) from error
    for name, value in json.loads(json.dumps(identity)).items():
        if before.get(name) != value:
            raise ConfigError(
                f"{work} holds an interrupted profile with another {name} "
                f"({before.get(name)!s:.80}, this one is {value!s:.80}); repeat that command to "
                "go on with it, or remove the folder"
            )
    return unit


def save_state(work: Path, state: State) -> None:
    """Write the state; the files it refers to must be on the disk already."""
    arrays = {**state.tally.arrays(), "lengths": np.array(state.lengths, np.int64)}
    write_atomically(work / _STATE, pack(arrays, {"chain": state.chain}))


def resume(work: Path, units: Iterator[Unit], shape: tuple[int, int], bits_per_token: int) -> State:
    """The saved state, its units read past; an empty one where nothing usable was saved.

    Args:
        work: the folder.
        units: of the text, from its start; left behind the last one that is done.
        shape: layers and neurons.
        bits_per_token: bytes a token has in the recording; 0 without one.

    Raises:
        ConfigError: the text is not the one that was counted.
    """
    state = State(Tally.empty(*shape), [])
    try:
        header, arrays = unpack((work / _STATE).read_bytes(), _STATE_LIMIT)
        tally = Tally.of(arrays, *shape)
        lengths, chain = arrays["lengths"].tolist(), str(header["chain"])
        if bits_per_token and (work / BITS).stat().st_size < tally.tokens * bits_per_token:
            return state  # the disk lost what the sums count on
    except (OSError, ValueError, KeyError):
        return state
    done = 0
    while done < len(lengths):
        unit, _ = next(units, ([], 0))
        state.chain, done = state.link(unit), done + len(unit)
        if not unit:
            break
    if state.chain != chain:
        raise ConfigError(
            f"the text has changed since {work} was begun; put it back, or remove the folder"
        )
    return State(tally, lengths, chain)


@contextmanager
def bits_file(work: Path, size: int) -> Iterator[BinaryIO]:
    """The recording's bits, cut to what the state counts and open for more."""
    path = work / BITS
    with open(path, "r+b" if path.exists() else "w+b") as file:
        file.truncate(size)
        file.seek(size)
        yield file


def write_bits(file: BinaryIO, bits_TLS: NDArray[np.uint8]) -> None:
    """Append, and wait for the disk."""
    file.write(bits_TLS.tobytes())
    file.flush()
    os.fsync(file.fileno())
