"""Safetensors files, single or sharded: headers are checked before use, rows read on demand.

A file is an 8-byte header length, a JSON header, then the data:

    | u64 n | JSON: {name: {dtype, shape, data_offsets}} | tensor bytes ... |

Called by the Hugging Face reader. Reads with plain file reads rather than a mapping: a file that is
cut short meanwhile is then an error instead of a SIGBUS, a checkpoint of any size costs only the
rows asked for, and bfloat16, which numpy lacks, arrives as its bits without importing torch.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.arrays import ArrayFiles
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import file_bytes
from hotcold.runtime.model.architectures.limits import is_int
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, Raw
from hotcold.runtime.model.checkpoints.weight_files import weight_files

HEADER_LIMIT_BYTES = 100_000_000  # the reference implementation's own limit
_SAMPLE_BYTES = 4096
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    `code` is safetensors' dtype code, "BF16"; shapes are rows first; `begin` and `size` are bytes.
    """

    file: Path
    code: str
    shape: tuple[int, ...]
    begin: int
    size: int


def _entry(path: Path, name: str, entry: object, data_begin: int, data_bytes: int) -> TensorInfo:
    wrong = f"the header of {path} describes tensor {name!r:.100}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{wrong} by type {type(entry).__name__}; restore the file")
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not (isinstance(shape, list) and len(shape) <= 8 and all(is_int(n) for n in shape)):
        raise CheckpointError(f"{wrong} with the shape {shape!r:.100}; restore the file")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(is_int(n) for n in offsets)):
        raise CheckpointError(f"{wrong} with the offsets {offsets!r:.100}; restore the file")
    begin, end = offsets
    if min(shape, default=0) < 0 or not 0 <= begin <= end:
        raise CheckpointError(f"{wrong} as {shape!r:.100} at {offsets!r:.100}; restore the file")
    if end > data_bytes:
        raise CheckpointError(
            f"{path} is truncated: tensor {name!r:.100} ends at byte {data_begin + end}, the file "
            f"has {data_begin + data_bytes}; download it again"
        )
    if not isinstance(code, str):
        raise CheckpointError(f"{wrong} with the dtype {code!r:.100}; restore the file")
    if code in DTYPES:
        expected = math.prod(shape) * RAW_TYPES[DTYPES[code]].itemsize
        if expected != end - begin:
            raise CheckpointError(
                f"{wrong} as {shape!r:.100} of {code}, which takes {expected} bytes, at "
                f"{end - begin} bytes; restore the file"
            )
    return TensorInfo(path, code, tuple(shape), data_begin + begin, end - begin)


def _refused(path: Path, text: str) -> CheckpointError:
    """The error for a file without a header: what it is instead, where that can be told."""
    return CheckpointError(f"{path} {impostor(path) or text + '; download it again'}")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """All tensors of one safetensors file, by name.

    Raises:
        CheckpointError: missing, truncated, or a header that cannot be right.
    """
    size = file_bytes(path)
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise _refused(
                    path, f"is truncated: {size} bytes, a safetensors file has at least 8"
                )
            if length > min(HEADER_LIMIT_BYTES, size - 8):
                raise _refused(
                    path,
                    f"claims a header of {length} bytes; the file has {size} and a header at most "
                    f"{HEADER_LIMIT_BYTES}, so it is truncated or no safetensors file",
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its owner") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _refused(path, f"has a header that is not valid JSON ({str(error)[:200]})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {path} is not a JSON object; download it again")
    tensors = {
        name: _entry(path, name, entry, 8 + length, size - 8 - length)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    end = max((info.begin + info.size for info in tensors.values()), default=8 + length)
    if end != size:
        raise CheckpointError(
            f"{path} has {size} bytes, its header describes {end}: something changed it, git "
            "converting line ends for example; download it again"
        )
    return tensors


def _check_end(path: Path, header: dict[str, TensorInfo]) -> None:
    """Refuse a file whose last matrix is zeros: a download took the room and did not fill it."""
    last = max(header.values(), key=lambda info: info.begin + info.size, default=None)
    if last is None or len(last.shape) < 2 or not last.size:
        return
    with path.open("rb") as file:  # all of it: embeddings of padded vocabularies end in zeros
        for part in (0, 1, 2):
            file.seek(last.begin + max(0, last.size - _SAMPLE_BYTES) * part // 2)
            if file.read(_SAMPLE_BYTES).strip(b"\0"):
                return
    name = next(name for name, info in header.items() if info is last)
    raise CheckpointError(
        f"{path} ends in zeros (in tensor {name!r:.100}): a download took the room and did not "
        "fill it; download it again"
    )


class TensorReader:
    """Rows of the tensors of a checkpoint, one shard open at a time.

    Raises:
        CheckpointError: see weight_files and read_header; or the index names a tensor its shard
            does not have.
    """

    def __init__(self, folder: Path) -> None:
        self._files = ArrayFiles()
        found = weight_files(folder)
        self.files = found.files
        headers = {path: read_header(path) for path in found.shards}
        for path, header in headers.items():
            _check_end(path, header)
        self.tensors = found.tensors(headers)

    def dtype(self, name: str) -> str:
        """Dtype of a tensor.

        Raises:
            CheckpointError: it is not one of float32, float16, bfloat16.
        """
        code = self.tensors[name].code
        if code not in DTYPES:
            way_out = (
                "save it in one of these" if code == "F64" else "use the unquantised checkpoint"
            )
            raise CheckpointError(
                f"tensor {name} of {self.tensors[name].file} is stored as {code:.40}; supported: "
                f"F32, F16 and BF16, so {way_out}"
            )
        return DTYPES[code]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Raw:
        """Rows [start, stop) of a tensor as stored (bfloat16 as uint16).

        Raises:
            CheckpointError: the file ended early or cannot be read.
        """
        info = self.tensors[name]
        stop = info.shape[0] if stop is None else stop
        out = np.empty((stop - start, *info.shape[1:]), RAW_TYPES[self.dtype(name)])
        row_bytes = math.prod(info.shape[1:]) * out.itemsize
        self._files.read(info.file, info.begin + start * row_bytes, out, name)
        return out

    def close(self) -> None:
        """Close the open shard; reading again reopens it."""
        self._files.close()
