"""WeightStore: the one place where weights are in memory, one copy a machine.

Maps a bundle's weights.bin read-only and shared, so that any number of actors on a machine share
the pages. Executors ask for addresses, predictors and offline verbs for arrays. Converts nothing
in place and computes nothing.
"""

import mmap
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.errors import CheckpointError, ConfigError
from hotcold.runtime.formats.bundle import Bundle
from hotcold.runtime.formats.dtypes import RAW_TYPES, Raw, to_float32
from hotcold.runtime.formats.layout import TensorEntry

STORE_KINDS = ("file",)


class WeightStore:
    """The weights of one bundle; make it with `open`.

    Args:
        bundle: the bundle.
        mapping: its weights.bin.
    """

    def __init__(self, bundle: Bundle, mapping: mmap.mmap) -> None:
        self.bundle = bundle
        self._mapping: mmap.mmap | None = mapping
        self._bytes: NDArray[np.uint8] | None = np.frombuffer(mapping, np.uint8)

    @classmethod
    def open(cls, bundle: Bundle, kind: str = "file") -> "WeightStore":
        """Map the weights of an opened bundle.

        Args:
            bundle: from resolve_model or open_bundle.
            kind: how they are held; "file": shared read-only pages of weights.bin.

        Raises:
            ConfigError: unknown kind.
            CheckpointError: the file is gone or has another size than when it was opened.
        """
        if kind not in STORE_KINDS:
            raise ConfigError(
                f"weight store kind {kind!r:.80} is unknown; choose one of {', '.join(STORE_KINDS)}"
            )
        path = bundle.weights_path
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot map {path}: {error}; open the model again") from error
        if len(mapping) != bundle.weights_bytes:
            size = len(mapping)
            mapping.close()
            raise CheckpointError(
                f"{path} has {size} bytes where the bundle says {bundle.weights_bytes}; open the "
                "model again"
            )
        return cls(bundle, mapping)

    def _entry(self, name: str) -> TensorEntry:
        entry = self.bundle.tensors.get(name)
        if entry is None:
            raise ConfigError(f"bundle {self.bundle.name} has no tensor {name!r:.80}")
        return entry

    def _memory(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            raise ConfigError(f"the weight store of {self.bundle.name} is closed; open it again")
        return self._bytes

    @property
    def nbytes(self) -> int:
        """Bytes mapped."""
        return self.bundle.weights_bytes

    def address(self, name: str) -> int:
        """Address of a tensor's first byte, for the native side; valid until close().

        Raises:
            ConfigError: no such tensor, or the store is closed.
        """
        return int(self._memory().ctypes.data) + self._entry(name).offset

    def array(self, name: str) -> Raw:
        """A tensor as stored, read-only, without a copy: bfloat16 as uint16, neurons as uint8.

        The array keeps the mapping alive beyond close().

        Raises:
            ConfigError: no such tensor, or the store is closed.
        """
        entry = self._entry(name)
        raw = self._memory()[entry.offset : entry.offset + entry.size]
        if entry.dtype != "uint8":
            raw = raw.view(RAW_TYPES[entry.dtype])
        return raw.reshape(entry.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """A copy of a matrix, norm or bias in float32; exact.

        Raises:
            ConfigError: no such tensor, or it holds neuron records (see neuron_rows).
        """
        dtype = self._entry(name).dtype
        if dtype == "uint8":
            raise ConfigError(f"{name} holds neuron records; ask for one part with neuron_rows")
        return np.array(to_float32(self.array(name), dtype), np.float32)

    def neuron_rows(self, layer: int, part: Literal["gate", "up", "down"]) -> NDArray[np.float32]:
        """A copy of one part of every neuron of a layer, rows_ND, in float32.

        Row i is neuron i's gate row (of a plain ReLU layer: its row of fc1), up row or down column.

        Raises:
            ConfigError: no such layer or part, or neurons of this model have none.
        """
        record, spec = self.bundle.record, self.bundle.spec
        offsets = {"gate": record.gate_offset, "up": record.up_offset, "down": record.down_offset}
        if part not in offsets:
            raise ConfigError(f"a neuron has no part {part!r:.80}; choose gate, up or down")
        if offsets[part] < 0:
            raise ConfigError(f"a neuron of {self.bundle.name} has no {part} row; it has no gating")
        records = self.array(f"layers.{layer}.neurons").view(RAW_TYPES[spec.dtype])
        begin = offsets[part] // spec.element_bytes
        rows = records[:, begin : begin + spec.d_model]
        return np.array(to_float32(rows, spec.dtype), np.float32, order="C")

    def neuron_biases(self, layer: int) -> NDArray[np.float32]:
        """A copy of what is added to each gate row's product, [N]; zeros where neurons have none.

        Raises:
            ConfigError: no such layer.
        """
        records, offset = self.array(f"layers.{layer}.neurons"), self.bundle.record.bias_offset
        if not offset:
            return np.zeros(len(records), np.float32)
        return records.view("<f4")[:, offset // 4].astype(np.float32)

    def close(self) -> None:
        """Let go of the mapping; idempotent. Addresses handed out are invalid from here on."""
        mapping, self._mapping, self._bytes = self._mapping, None, None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:
                pass  # arrays handed out still look at it; it goes with the last of them

    def __enter__(self) -> "WeightStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
