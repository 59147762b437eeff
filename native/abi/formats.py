"""Formats of a neuron's parts, by the words of names.py: what d weights take and where scales lie.

The C side of the table is hc_formats (native/core/internal.h), its primitives lie in native/cpu;
how values are stored and read back in Python is in runtime/model/checkpoints/quantised.py.
"""

from dataclasses import dataclass

from hotcold.native.abi.generated import GROUP, Dtype
from hotcold.native.abi.names import DTYPE_BYTES, DTYPES

SCALE_BYTES = 2
PART_ALIGNMENT = 16  # of both halves of a part with scales


@dataclass(frozen=True)
class Format:
    """Bytes of a weight, and how many in turn share a scale, a float16 (0: they have none)."""

    weight_bytes: int
    group: int = 0

    def scales(self, d: int) -> int:
        """Bytes from the first of d weights to their first scale; 0: no scales."""
        return _padded(d * self.weight_bytes) if self.group else 0

    def groups(self, d: int) -> int:
        """Scales of d weights."""
        return -(-d // self.group) if self.group else 0

    def part_bytes(self, d: int) -> int:
        """Bytes of a part of d weights: where it has scales, both are padded with zeros."""
        if not self.group:
            return d * self.weight_bytes
        return self.scales(d) + _padded(SCALE_BYTES * self.groups(d))

    def read_bytes(self, d: int) -> int:
        """Bytes of it that are looked at: hc_row_bytes in C."""
        return d * self.weight_bytes + SCALE_BYTES * self.groups(d)


def _padded(size: int) -> int:
    return -(-size // PART_ALIGNMENT) * PART_ALIGNMENT


FORMATS: dict[str, Format] = {
    word: Format(DTYPE_BYTES[word], GROUP if dtype is Dtype.I8 else 0)
    for word, dtype in DTYPES.items()
}
