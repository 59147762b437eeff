"""Tensors of GGUF files under a checkpoint's names, rows in its order and in plain numbers.

F32, F16 and BF16 are kept. Other types are dequantised by the gguf package, in the float16 of the
bundle (float32 where a wider one is asked for): their values do not change beyond that rounding,
but they take 16 bits again. A format of neurons that holds one as it is belongs in `rows`.
Interface of a safetensors TensorReader, so that a checkpoint does not know which it reads.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.arrays import ArrayFiles
from hotcold.runtime.model.gguf.header import PLAIN, Header, Tensor, read_header
from hotcold.runtime.model.gguf.kinds import config_of, kind_of, llama3_scaling, stored_name

logger = logging.getLogger(__name__)
_RAW: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
PREDICTOR = re.compile(r"blk\.(\d{1,6})\.(fc1|fc2)\.weight")
FREQUENCIES = "rope_freqs.weight"


def split_files(path: Path) -> list[Path]:
    """All files of a model, in order, of any one of them.

    Raises:
        CheckpointError: some are missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match[3])
    paths = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{match[3]}.gguf") for i in range(count)]
    missing = [one.name for one in paths if not one.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise CheckpointError(
            f"{path.parent} lacks {len(missing)} of {count} parts of {path.name}: "
            f"{missing[0]}{more}; download what is missing"
        )
    return paths


def read_split(path: Path) -> Header:
    """Keys of the first file, tensors of all.

    Raises:
        CheckpointError: see read_header and split_files; or two parts hold one tensor.
    """
    headers = [read_header(one) for one in split_files(path)]
    tensors: dict[str, Tensor] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{header.path} holds tensor {name!r:.100}, which {tensors[name].file.name} "
                    "holds too; download the parts again"
                )
            tensors[name] = tensor
    keys = headers[0].keys
    said = keys.get("split.count", len(headers)), keys.get("split.tensors.count", len(tensors))
    if said != (len(headers), len(tensors)):
        raise CheckpointError(
            f"{path} says the model has {said[0]!r:.20} parts and {said[1]!r:.20} tensors, there "
            f"are {len(headers)} and {len(tensors)}; download the parts again"
        )
    return Header(path, headers[0].powerinfer, keys, tensors)


class GgufReader:
    """Rows of the tensors of a GGUF file by a checkpoint's names, one part open at a time.

    Args:
        path: the file, or a part of it.
        dtype: what is asked for; decides what quantised types become.

    Attributes:
        tensors: by a checkpoint's name, shapes as it has them.
        config: what config.json would say.

    Raises:
        CheckpointError: it cannot be read, or is of an architecture that is not.
    """

    def __init__(self, path: Path, dtype: str | None = None) -> None:
        self._files = ArrayFiles()
        self.header = read_split(path)
        self.files = split_files(path)
        self.name, self._kind = kind_of(self.header)
        self.config: dict[str, Any] = config_of(self.header)
        self._dequantised = "float32" if dtype in ("float32", "bfloat16") else "float16"
        self._frequencies()
        self.tensors = {name: _Shape(self._shape(name)) for name in self._names()}

    def _frequencies(self) -> None:
        found = self.header.tensors.get(FREQUENCIES)
        if found is None or found.kind != "F32" or len(found.shape) != 1:
            return
        factors = self._raw(found, 0, 1).reshape(-1)
        theta = self.config.get("rope_theta", 10000.0)
        if np.all(factors == 1):
            return
        scaling = None
        if np.isfinite(factors).all() and isinstance(theta, float) and theta > 0:
            scaling = llama3_scaling(factors, theta, 2 * len(factors))
        if scaling is None:
            raise CheckpointError(
                f"{self.header.path} stretches its rotary frequencies by {FREQUENCIES} in a way "
                "that is not Llama 3's, which is not supported; use its Hugging Face folder"
            )
        self.config["rope_scaling"] = scaling

    def _names(self) -> Iterator[str]:
        """The checkpoint's names of all tensors; those that no checkpoint has keep their own."""
        has = self.header.tensors
        layers = {int(m[1]) for name in has if (m := re.match(r"blk\.(\d{1,6})\.", name))}
        stems = [*self._kind.ends]
        parts = {*self._kind.layer, "ln_mlp", "ln_attn"}
        stems += [f"{self._kind.layers}.{i}.{part}" for i in sorted(layers) for part in parts]
        used = set()
        for name in (f"{stem}.{part}" for stem in stems for part in ("weight", "bias")):
            stored = stored_name(self._kind, name, self.header.powerinfer, has)
            if stored in has:
                used.add(stored)
                yield name
        extra = [n for n in has if n not in used and not PREDICTOR.fullmatch(n)]
        yield from (name for name in extra if name != FREQUENCIES)

    def _stored(self, name: str) -> Tensor:
        has = self.header.tensors
        stored = stored_name(self._kind, name, self.header.powerinfer, has)
        return has[stored if stored in has else name]

    def _shape(self, name: str) -> tuple[int, ...]:
        tensor = self._stored(name)
        return tensor.shape[::-1] if self._down_rows(tensor) else tensor.shape

    @staticmethod
    def _down_rows(tensor: Tensor) -> bool:
        return tensor.name.endswith(".ffn_down_t.weight")

    def say_cost(self) -> None:
        """Log what dequantising costs."""
        kinds = Counter(t.kind for t in self.header.tensors.values() if t.kind not in PLAIN)
        if not kinds:
            return
        taken = sum(t.size for t in self.header.tensors.values() if t.kind not in PLAIN)
        elements = sum(
            math.prod(t.shape) for t in self.header.tensors.values() if t.kind not in PLAIN
        )
        logger.info(
            "%s: %s are dequantised: %.2f GB become %.2f GB in float16, which cost as much more "
            "time a token; --dtype int8 halves the neurons again",
            self.header.path,
            ", ".join(f"{count} tensors in {kind}" for kind, count in sorted(kinds.items())),
            taken / 1e9,
            2 * elements / 1e9,
        )

    def dtype(self, name: str) -> str:
        """The dtype in which `rows` gives a tensor."""
        return self._of(self._stored(name))

    @cached_property
    def _heads(self) -> tuple[int, int]:
        found = (self.config.get(k) for k in ("num_attention_heads", "num_key_value_heads"))
        heads, kv_heads = (n if type(n) is int and 0 < n <= 1 << 16 else 1 for n in found)
        return heads, kv_heads

    def _order(self, tensor: Tensor) -> NDArray[Any] | None:
        """Which row of the file each of the checkpoint's is; None: the same."""
        heads, kv_heads = self._heads
        short = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        rows: NDArray[Any] = np.arange(tensor.shape[0])
        if self._kind.interleaved and short in ("attn_q", "attn_k"):
            own = heads if short == "attn_q" else kv_heads
            if len(rows) % (2 * own) == 0:
                rows = rows.reshape(own, -1, 2).swapaxes(1, 2)
                return rows.reshape(-1)
        if short == "attn_qkv" and len(rows) % (heads + 2 * kv_heads) == 0 and not heads % kv_heads:
            size = len(rows) // (heads + 2 * kv_heads)
            queries = rows[: heads * size].reshape(kv_heads, -1)
            rest = rows[heads * size :].reshape(2, kv_heads, size)
            rows = np.concatenate([queries, rest[0], rest[1]], axis=1)
            return rows.reshape(-1)
        return None

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of a tensor in its `dtype` (bfloat16 as uint16).

        Raises:
            CheckpointError: the file ended early, cannot be read or not be dequantised.
        """
        tensor = self._stored(name)
        if self._down_rows(tensor):
            return np.ascontiguousarray(self._plain(tensor, 0, tensor.shape[0]).T[start:stop])
        stop = tensor.shape[0] if stop is None else stop
        order = self._order(tensor)
        if len(tensor.shape) == 1:
            whole = self._plain(tensor, 0, 1).reshape(-1)
            if self._kind.norm_plus and name.endswith("norm.weight"):
                whole = (whole - np.float32(self._kind.norm_plus)).astype(whole.dtype)
            return (whole if order is None else whole[order])[start:stop]
        if order is None:
            return self._plain(tensor, start, stop)
        wanted = order[start:stop]
        if not len(wanted):
            return self._plain(tensor, 0, 0)
        low = int(wanted.min())
        return np.ascontiguousarray(self._plain(tensor, low, int(wanted.max()) + 1)[wanted - low])

    def _plain(self, tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
        """Rows as the file has them, a vector being one, without its blocks."""
        raw = self._raw(tensor, start, stop)
        if tensor.kind in PLAIN:
            return raw
        import gguf.quants  # imported here: it costs every start 0.1 s

        kind = gguf.GGMLQuantizationType[tensor.kind]
        try:
            values = gguf.quants.dequantize(raw, kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"tensor {tensor.name} of {tensor.file} is in {tensor.kind}, which the gguf "
                "package cannot dequantise; use a file in another type, or the Hugging Face folder"
            ) from error
        with np.errstate(over="ignore"):  # found as an infinity by whoever reads
            return values.astype(self._dequantised, copy=False)

    def _raw(self, tensor: Tensor, start: int, stop: int) -> NDArray[Any]:
        dtype = _RAW.get(tensor.kind) or np.dtype(np.uint8)
        width = tensor.row_bytes // dtype.itemsize
        row_bytes = tensor.row_bytes
        if len(tensor.shape) > 2:  # nothing of ours has them
            width, row_bytes, start, stop = tensor.size // dtype.itemsize, tensor.size, 0, 1
        out = np.empty((stop - start, width), dtype)
        begin = tensor.begin + start * row_bytes
        self._files.read(tensor.file, begin, out, tensor.name)
        return out

    def predictor_shape(self, layer: int, part: str) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape that `predictor` gives."""
        tensor = self.header.tensors[f"blk.{layer}.{part}.weight"]
        half = tensor.kind != "BF16" and self._of(tensor) == "float16"
        return "float16" if half else "float32", tensor.shape

    def predictor(self, layer: int, part: str) -> NDArray[Any]:
        """fc1 [H, D] or fc2 [N, H] of a layer in PowerInfer's file, float16 or float32."""
        tensor = self.header.tensors[f"blk.{layer}.{part}.weight"]
        found = self._plain(tensor, 0, tensor.shape[0])
        if tensor.kind == "BF16":
            found = (found.astype(np.uint32) << 16).view(np.float32)
        return found

    def _of(self, tensor: Tensor) -> str:
        return PLAIN.get(tensor.kind, self._dequantised)

    def close(self) -> None:
        """Close the open part; reading again reopens it."""
        self._files.close()


class _Shape:
    """A tensor's shape, as a safetensors TensorInfo has it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
