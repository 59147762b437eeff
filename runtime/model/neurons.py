"""NeuronRecord: where the parts of one neuron lie inside its record.

A neuron of a gated feed-forward layer is its gate row, its up row and its down column; one of a
plain ReLU layer a row of fc1, which decides whether it fires and is called gate row here too, a
column of fc2 and a bias. The bundle stores all parts side by side, so that whoever owns a neuron
reads one stretch of memory:

    gated  | gate row, D elements | up row, D elements | down column, D elements | zeros up to 64 |
    plain  | gate row, D elements | down column, D elements | bias, float32 | zeros up to 64 bytes |

In a format with scales a row is: weights | zeros up to 16 bytes | scales | zeros up to 16.

Used by the bundle writer, the weight store and everything that passes records to the native
kernels. Holds no weights.
"""

from dataclasses import dataclass
from typing import Any

from hotcold.native.abi.formats import FORMATS
from hotcold.runtime.model.spec import ModelSpec

RECORD_ALIGNMENT = 64
ROWS = ("gate", "up", "down")
ABSENT = -1


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least value."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Part:
    """A part of a record: name ("gate", "up", "down", "bias"), format, first byte, bytes."""

    name: str
    format: str
    offset: int
    bytes: int

    @property
    def slice(self) -> slice:
        """Where its bytes lie in a record."""
        return slice(self.offset, self.offset + self.bytes)


@dataclass(frozen=True)
class NeuronRecord:
    """Byte layout of one neuron; every record of a layer has the same.

    Args:
        parts: in the order of their offsets.
        bytes: distance between two records, a multiple of 64.
        d: weights of a row.
    """

    parts: tuple[Part, ...]
    bytes: int
    d: int

    @classmethod
    def for_spec(cls, spec: ModelSpec) -> "NeuronRecord":
        """The layout of this model's neurons."""
        names = ROWS if spec.gated else ("gate", "down")
        kind = spec.neuron_format
        row = FORMATS[kind].part_bytes(spec.d_model)
        parts: list[Part] = []
        for name in names:
            parts.append(Part(name, kind, len(parts) * row, row))
        if spec.biases:  # two rows are a multiple of 4 bytes: the bias is aligned
            parts.append(Part("bias", "float32", len(parts) * row, 4))
        end = parts[-1].offset + parts[-1].bytes
        return cls(tuple(parts), round_up(end, RECORD_ALIGNMENT), spec.d_model)

    def part(self, name: str) -> Part | None:
        """The part of that name; None: neurons of this model have none."""
        return next((part for part in self.parts if part.name == name), None)

    def fields(self) -> dict[str, Any]:
        """As fields of hc_record (abi/hotcold.h)."""
        offsets = {name: ABSENT for name in ROWS} | {part.name: part.offset for part in self.parts}
        kind = self.parts[0].format
        scales = {"scales": FORMATS[kind].scales(self.d), "group": FORMATS[kind].group}
        return offsets | {"bytes": self.bytes, "dtype": kind} | scales
