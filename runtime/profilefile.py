"""activations.npz: an ActivationProfile on disk, and what else is read as one.

Called by ActivationProfile.load and save. Members: `counts` [L, N], `tokens`, and where they were
counted `sums` [L, N] and `fired` [L, K]; `notes` holds JSON. Nothing is allocated before its size
is checked; arrays of other names are ignored. A folder is read by what is in it: activations.npz
or the `activation_{i}.pt` of PowerInfer (formats/activation_pt.py).
"""

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hotcold.runtime.errors import CheckpointError
from hotcold.runtime.formats.activation_pt import find_counts, read_counts
from hotcold.runtime.npz import write_atomically
from hotcold.runtime.profile import FILE_NAME, ActivationProfile

MAX_ARRAY_BYTES = 1 << 28  # of one array in a profile; 400 layers of 80,000 neurons fit
# The date in every archive entry: the same counts give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def save_profile(profile: ActivationProfile, path: Path) -> None:
    """Write the file; see ActivationProfile.save."""
    notes = json.dumps({"model": profile.model, "source": profile.source}, sort_keys=True)
    arrays: dict[str, Any] = {
        "counts": profile.counts_LN,
        "tokens": np.int64(profile.tokens),
        "notes": np.frombuffer(notes.encode(), dtype=np.uint8),
    }
    if profile.sums_LN is not None:
        arrays["sums"] = profile.sums_LN
    if profile.tokens_LK is not None:
        arrays["fired"] = profile.tokens_LK
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue())
    write_atomically(path, out.getvalue())


def load_profile(path: Path) -> ActivationProfile:
    """Read a profile, checking every size before anything is allocated for it.

    Raises:
        CheckpointError: not a profile, damaged, or with impossible values.
    """
    if path.is_dir():
        if (path / FILE_NAME).exists():
            path = path / FILE_NAME
        elif files := find_counts(path):
            return _of_counts(files, path)
        else:
            raise CheckpointError(
                f"{path} holds no profile: neither {FILE_NAME} nor PowerInfer's activation_0.pt"
            )
    arrays = _read(path)
    counts, tokens = arrays["counts"], arrays["tokens"]
    if tokens.shape != () or tokens.dtype.kind not in "iu":
        raise CheckpointError(f"{path}: tokens is {tokens.dtype}{list(tokens.shape)}, not a count")
    if counts.dtype.kind not in "iu":
        raise CheckpointError(f"{path}: counts have dtype {counts.dtype}, must be integers")
    said = _notes(arrays.get("notes"), path)
    fired = arrays.get("fired")
    try:
        return ActivationProfile(
            counts.astype(np.int64),
            int(tokens),
            said["model"],
            said["source"],
            arrays.get("sums"),
            fired,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _of_counts(files: list[Path], folder: Path) -> ActivationProfile:
    """PowerInfer's counts. It keeps no number of tokens: the highest count stands for it."""
    counts_LN = read_counts(files)
    source = f"PowerInfer's {folder.name}, tokens not known: taken as the highest count"
    return ActivationProfile(counts_LN, max(1, int(counts_LN.max())), "", source)


# The last two: odd compression and encryption.
_DAMAGE = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError),
)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The members a profile has, those that must be there among them."""
    try:
        with zipfile.ZipFile(path) as archive:
            there = set(archive.namelist())
            names = ["counts", "tokens"]
            names += [name for name in ("notes", "sums", "fired") if f"{name}.npy" in there]
            return {name: _member(archive, name, path) for name in names}
    except CheckpointError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is not a readable profile ({error})") from error


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> npt.NDArray[Any]:
    """Read one array; its header must agree with the bytes that are there."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise CheckpointError(f"{path} is not a profile: it has no array '{name}'") from None
    if info.file_size > MAX_ARRAY_BYTES:
        raise CheckpointError(
            f"{path}: array '{name}' claims {info.file_size} bytes, the limit is {MAX_ARRAY_BYTES}"
        )
    with archive.open(info) as member:
        data = io.BytesIO(member.read(MAX_ARRAY_BYTES + 1))
    version = np.lib.format.read_magic(data)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(data)
    if dtype.hasobject or dtype.kind not in "iuf" or fortran:
        raise CheckpointError(f"{path}: array '{name}' has dtype {dtype} or order not of a profile")
    body = data.read()
    wanted = dtype.itemsize
    for size in shape:
        wanted *= int(size)
    if len(body) != wanted:
        raise CheckpointError(
            f"{path}: array '{name}' of shape {list(shape)} needs {wanted} bytes, has {len(body)}"
        )
    return np.frombuffer(body, dtype=dtype).reshape(shape)


def _notes(array: npt.NDArray[Any] | None, path: Path) -> dict[str, str]:
    said = {"model": "", "source": ""}
    if array is None:
        return said
    try:
        found = json.loads(array.astype(np.uint8).tobytes().decode())
        return {name: str(found.get(name, "")) for name in said}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its notes are damaged ({error})") from error
