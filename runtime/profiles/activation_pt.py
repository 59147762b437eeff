"""PowerInfer's activation counts: a folder of `activation_{i}.pt`, a tensor of N counts each.

Read by profile.py wherever a profile is accepted. Layers are ordered by number (PowerInfer's
own exporter sorts names as text and so gives layer 2 the counts of layer 10). The files are
untrusted: only tensors are unpickled, and nothing larger than a layer's counts is unpacked.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError

MAX_FILE_BYTES = 1 << 24  # unpacked: two million counts
_NAME = re.compile(r"activation_(\d{1,6})\.pt")


def find_counts(folder: Path) -> list[Path]:
    """The files of all layers, in order, in a folder or in its folder `activation`.

    Raises:
        CheckpointError: a layer between them is missing.
    """
    for place in (folder, folder / "activation"):
        found = {}
        for path in place.glob("activation_*.pt"):
            if match := _NAME.fullmatch(path.name):
                found[int(match[1])] = path
        if found:
            gap = next((i for i in range(len(found)) if i not in found), None)
            if gap is not None:
                raise CheckpointError(
                    f"{place} has {len(found)} files of counts but no activation_{gap}.pt; "
                    "copy all layers"
                )
            return [found[index] for index in range(len(found))]
    return []


def read_counts(files: list[Path]) -> NDArray[np.int64]:
    """Counts [L, N] of the layers' files.

    Raises:
        CheckpointError: a file that is damaged, holds no counts, or has another number of neurons
            than the first.
    """
    rows = [_counts(path) for path in files]
    for path, counts_N in zip(files, rows, strict=True):
        if len(counts_N) != len(rows[0]):
            raise CheckpointError(
                f"{path} has counts of {len(counts_N)} neurons, {files[0].name} of {len(rows[0])}; "
                "they belong to different models"
            )
    return np.stack(rows)


def _counts(path: Path) -> NDArray[np.int64]:
    import torch  # imported here: it costs a second, too much for actors that restart

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to {size} bytes, the limit is {MAX_FILE_BYTES}")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, zlib, torch and its unpickler: all mean damage
        said = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is not a readable file of counts ({said})") from error
    if not isinstance(found, torch.Tensor) or found.layout != torch.strided or found.ndim != 1:
        what = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise CheckpointError(f"{path} holds {what}, must be one tensor of a count for each neuron")
    if not 0 < found.numel() * 8 <= MAX_FILE_BYTES or found.is_complex():
        raise CheckpointError(f"{path} holds {found.numel()} {found.dtype}, not a layer's counts")
    values_N: NDArray[np.float64] = found.detach().to(torch.float64).numpy()
    fine = np.isfinite(values_N) & (values_N >= 0) & (values_N < 2**53)
    if not fine.all() or (values_N != np.floor(values_N)).any():
        raise CheckpointError(f"{path} holds values that are not whole counts from 0 on")
    return values_N.astype(np.int64)
