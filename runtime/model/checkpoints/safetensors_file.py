"""Safetensors files, single or sharded: headers are checked before use, rows read on demand.

A file is an 8-byte header length, a JSON header, then the data:

    | u64 n | JSON: {name: {dtype, shape, data_offsets}} | tensor bytes ... |

Called by the Hugging Face reader. Reads with plain file reads rather than a mapping: a file that is
cut short meanwhile is then an error instead of a SIGBUS, a checkpoint of any size costs only the
rows asked for, and bfloat16, which numpy lacks, arrives as its bits without importing torch.
"""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.json_files import file_bytes, read_json_object, regular_file
from hotcold.runtime.model.architectures.limits import is_int
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, Raw

HEADER_LIMIT_BYTES = 100_000_000  # the reference implementation's own limit
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Args:
        file: the shard that holds it.
        code: safetensors' dtype code, "BF16".
        shape: rows first.
        begin: bytes from the start of the file.
        size: bytes.
    """

    file: Path
    code: str
    shape: tuple[int, ...]
    begin: int
    size: int


def _entry(path: Path, name: str, entry: object, data_begin: int, data_bytes: int) -> TensorInfo:
    """Check one header entry against the file."""
    wrong = f"the header of {path} describes tensor {name!r:.100}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{wrong} by a {type(entry).__name__}; restore the file")
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
                raise CheckpointError(
                    f"{path} is truncated: {size} bytes, a safetensors file has at least 8; "
                    "download it again"
                )
            if length > min(HEADER_LIMIT_BYTES, size - 8):
                raise CheckpointError(
                    f"{path} claims a header of {length} bytes; the file has {size} and a header "
                    f"at most {HEADER_LIMIT_BYTES}, so it is truncated or no safetensors file; "
                    "download it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its owner") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the header of {path} is not valid JSON ({str(error)[:200]}); download it again"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {path} is not a JSON object; download it again")
    return {
        name: _entry(path, name, entry, 8 + length, size - 8 - length)
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _shards(folder: Path) -> dict[str, Path]:
    """File by tensor name, from the index of a sharded checkpoint."""
    index = folder / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' object; restore the file")
    files: dict[str, Path] = {}
    for name, file in weight_map.items():
        # A bare name only: neither "../x" nor an absolute path may lead out of the folder.
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise CheckpointError(
                f"{index} places tensor {name!r:.100} in {file!r:.200}; a shard must be a file "
                f"name inside {folder}"
            )
        files[name] = folder / file
    return files


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder (and their index), in a fixed order.

    Raises:
        CheckpointError: there are none, or the index cannot be used.
    """
    if regular_file(folder / SINGLE):
        return [folder / SINGLE]
    if regular_file(folder / INDEX):
        return [folder / INDEX, *sorted(set(_shards(folder).values()))]
    if any(regular_file(folder / name) for name in ("pytorch_model.bin", "consolidated.00.pth")):
        raise CheckpointError(
            f"{folder} holds its weights as a pickle, which is never loaded; convert them once "
            "with transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    raise CheckpointError(f"{folder} holds neither {SINGLE} nor {INDEX}; download the weights")


class TensorReader:
    """Rows of the tensors of a checkpoint, one shard open at a time.

    Args:
        folder: the checkpoint.

    Raises:
        CheckpointError: see checkpoint_files and read_header; or the index names a tensor its shard
            does not have.
    """

    def __init__(self, folder: Path) -> None:
        self.files = checkpoint_files(folder)
        self.tensors: dict[str, TensorInfo] = {}
        self._open: tuple[Path, io.BufferedReader] | None = None
        headers = {path: read_header(path) for path in self.files if path.name != INDEX}
        if self.files[0].name != INDEX:
            self.tensors = headers[self.files[0]]
            return
        for name, path in _shards(folder).items():
            if name not in headers[path]:
                raise CheckpointError(
                    f"{folder / INDEX} places tensor {name!r:.100} in {path.name}, which does not "
                    "hold it; download the shards again"
                )
            self.tensors[name] = headers[path][name]

    def dtype(self, name: str) -> str:
        """Dtype of a tensor.

        Raises:
            CheckpointError: it is not one of float32, float16, bfloat16.
        """
        code = self.tensors[name].code
        if code not in DTYPES:
            raise CheckpointError(
                f"tensor {name} is stored as {code:.40}; supported: F32, F16 and BF16, so use the "
                "unquantised checkpoint"
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
        try:
            file = self._file(info.file)
            file.seek(info.begin + start * row_bytes)
            got = file.readinto(out.reshape(-1).view(np.uint8).data) if out.size else 0
        except OSError as error:
            raise CheckpointError(
                f"cannot read {info.file}: {error.strerror}; check the disk"
            ) from error
        if got != out.nbytes:
            raise CheckpointError(
                f"{info.file} ended inside tensor {name}; it changed while it was read, try again"
            )
        return out

    def _file(self, path: Path) -> io.BufferedReader:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = (path, path.open("rb"))
        return self._open[1]

    def close(self) -> None:
        """Close the open shard; reading again reopens it."""
        if self._open is not None:
            self._open[1].close()
            self._open = None
