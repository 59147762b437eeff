"""The header of a GGUF file, versions 2 and 3: keys, and where every tensor lies.

    | "GGUF" or PowerInfer's "PWRI" | u32 version | u64 tensors | u64 keys |
    | key: string, u32 type, value ... |
    | tensor: string, u32 n, u64 ne[n], u32 type, u64 offset ... |
    | padding to general.alignment | data |

Read by tensors.py. Every count is compared with the bytes that are left before anything of its size
is made, so that a damaged or hostile file costs no memory. Source: the GGUF specification;
PowerInfer's ids of types are those of November 2023, when I8, I16 and I32 were 16, 17 and 18.
"""

import math
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import file_bytes

MAGIC, POWERINFER_MAGIC = b"GGUF", b"PWRI"
VERSIONS = (2, 3)
HEADER_LIMIT_BYTES = 256 << 20  # the largest vocabularies take some 20 MB
ARRAY_LIMIT = 1 << 23  # elements; the largest vocabularies have some 500,000 merges
TENSOR_LIMIT, KEY_LIMIT, NAME_LIMIT_BYTES = 1 << 20, 1 << 16, 1 << 16
MAX_DIMS = 4
STRING, ARRAY = 8, 9
SCALARS = {  # value types: struct's letter
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
}
OLD_IDS = {16: "I8", 17: "I16", 18: "I32"}
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@cache
def types() -> dict[int, tuple[str, int, int]]:
    """Tensor types by id: name, elements of a block, bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES  # imported here: it costs every start 0.1 s

    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies.

    `kind` is ggml's name of its type, "Q4_0"; the shape is rows first; begin and size are bytes of
    the file, elements and bytes those of a block.
    """

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    size: int
    block: tuple[int, int]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        elements, size = self.block
        return self.shape[-1] // elements * size


@dataclass(frozen=True)
class Header:
    """What a file says of itself; `powerinfer` by its first bytes."""

    path: Path
    powerinfer: bool
    keys: dict[str, Any]
    tensors: dict[str, Tensor]


class _Reader:
    """Reads of a file that are refused where they reach beyond its end or the limit."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self._size = path, file, size
        self.at = 0

    def refuse(self, text: str) -> NoReturn:
        raise CheckpointError(f"{self.path} {text}; download it again")

    @property
    def left(self) -> int:
        return min(self._size, HEADER_LIMIT_BYTES) - self.at

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            limit = f", a header has at most {HEADER_LIMIT_BYTES}" * (self._size > self.left)
            self.refuse(
                f"ends inside its header: {what} takes {count} bytes at byte {self.at}, the file "
                f"has {self._size}{limit}"
            )
        data = self._file.read(count)
        if len(data) != count:
            self.refuse(f"changed while it was read: it ends at byte {self.at + len(data)}")
        self.at += count
        return data

    def number(self, letter: str, what: str) -> Any:  # noqa: ANN401 - int, float or bool
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(letter), what))[0]

    def count(self, what: str, least: int, limit: int) -> int:
        """How many of something follow, of which each takes at least so many bytes."""
        found: int = self.number("Q", f"the number of {what}")
        most = min(limit, self.left // least)
        if found > most:
            self.refuse(f"claims {found} {what}, its size allows at most {most}")
        return found

    def string(self, what: str, limit: int = HEADER_LIMIT_BYTES) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > min(limit, self.left):
            self.refuse(f"claims {length} bytes for {what}, at most {min(limit, self.left)} can be")
        return self.take(length, what).decode("utf-8", errors="replace")

    def value(self, name: str) -> Any:  # noqa: ANN401 - of any type
        kind = self.number("I", f"the type of {name}")
        if kind == ARRAY:
            return self._array(name)
        return self._one(kind, name)

    def _one(self, kind: int, name: str) -> Any:  # noqa: ANN401 - of any type
        if kind == STRING:
            return self.string(f"key {name}")
        if kind not in SCALARS:
            self.refuse(f"has key {name} of type {kind}, which does not exist")
        return self.number(SCALARS[kind], f"key {name}")

    def _array(self, name: str) -> list[Any]:
        kind = self.number("I", f"the type of {name}")
        if kind != STRING and kind not in SCALARS:
            self.refuse(f"has key {name} with an array of type {kind}, which is not supported")
        size = 8 if kind == STRING else struct.calcsize(SCALARS[kind])
        count = self.count(f"elements of {name}", size, ARRAY_LIMIT)
        if kind == STRING:
            return [self.string(f"an element of {name}") for _ in range(count)]
        return list(struct.unpack(f"<{count}{SCALARS[kind]}", self.take(count * size, name)))


def has_magic(path: Path, *magics: bytes) -> bool:
    """Whether a regular file begins with one of these."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) in magics
    except (OSError, ValueError):
        return False


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as GGUF does, or is named so."""
    named = path.suffix.lower() == ".gguf" and path.is_file()
    return named or has_magic(path, MAGIC, POWERINFER_MAGIC)


def read_header(path: Path) -> Header:
    """All keys and tensors of one file.

    Raises:
        CheckpointError: missing, truncated, of another version, or a header that cannot be right.
    """
    size = file_bytes(path)
    try:
        with path.open("rb") as file:
            return _read(_Reader(path, file, size), size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check its owner") from error


def _read(reader: _Reader, size: int) -> Header:
    path = reader.path
    magic = reader.take(4, "the magic number") if size >= 4 else b""
    if magic not in (MAGIC, POWERINFER_MAGIC):
        what = impostor(path) or f"is no GGUF file, it begins with {magic!r}; download it again"
        raise CheckpointError(f"{path} {what}")
    version = reader.number("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        what = "is big-endian GGUF" if swapped else f"is GGUF of version {version}"
        reader.refuse(
            f"{what}; versions {' and '.join(map(str, VERSIONS))} in little endian are read"
        )
    n_tensors = reader.count("tensors", 8 + 4 + 8 + 4 + 8, TENSOR_LIMIT)
    n_keys = reader.count("keys", 8 + 4 + 1, KEY_LIMIT)
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        name = reader.string("a key's name", NAME_LIMIT_BYTES)
        if name in keys:
            reader.refuse(f"has key {name!r:.100} twice")
        keys[name] = reader.value(f"{name!r:.100}")
    alignment = keys.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in {1 << n for n in range(3, 21)}:
        reader.refuse(
            f"has general.alignment {alignment!r:.80}, it must be a power of two from 8 on"
        )
    powerinfer = magic == POWERINFER_MAGIC
    rows = [_entry(reader, powerinfer) for _ in range(n_tensors)]
    begin = -(-reader.at // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, kind, shape, offset in rows:
        if name in tensors:
            reader.refuse(f"holds tensor {name!r:.100} twice")
        tensors[name] = _placed(reader, name, kind, shape, begin, offset, size, alignment)
    return Header(path, powerinfer, keys, tensors)


def _entry(
    reader: _Reader, powerinfer: bool
) -> tuple[str, tuple[str, int, int], tuple[int, ...], int]:
    name = reader.string("a tensor's name", NAME_LIMIT_BYTES)
    n_dims = reader.number("I", f"the dimensions of {name!r:.100}")
    if not 1 <= n_dims <= MAX_DIMS:
        reader.refuse(f"has tensor {name!r:.100} with {n_dims} dimensions, 1 to {MAX_DIMS} can be")
    shape = tuple(reader.number("Q", f"the shape of {name!r:.100}") for _ in range(n_dims))[::-1]
    code = reader.number("I", f"the type of {name!r:.100}")
    known = types()
    kind = known.get(code)
    if powerinfer and code in OLD_IDS:
        kind = next(row for row in known.values() if row[0] == OLD_IDS[code])
    if kind is None:
        reader.refuse(
            f"holds tensor {name!r:.100} of type {code}, which the gguf package does not know "
            "(`pip install -U gguf`)"
        )
    return name, kind, shape, reader.number("Q", f"the offset of {name!r:.100}")


def _placed(
    reader: _Reader,
    name: str,
    kind: tuple[str, int, int],
    shape: tuple[int, ...],
    begin: int,
    offset: int,
    size: int,
    alignment: int,
) -> Tensor:
    title, elements, block_bytes = kind
    said = f"has tensor {name!r:.100} of shape {list(shape)} in {title}"
    if shape[-1] % elements:
        reader.refuse(f"{said}: rows must be of {elements} elements or a multiple")
    taken = math.prod(shape) // elements * block_bytes
    if offset % alignment:
        reader.refuse(f"{said} at offset {offset}, which is no multiple of {alignment}")
    if begin + offset + taken > size:
        reader.refuse(f"{said}, which ends at byte {begin + offset + taken}; the file has {size}")
    place = begin + offset
    return Tensor(reader.path, name, title, shape, place, taken, (elements, block_bytes))
