"""NeuronRecord: where the three parts of one neuron lie inside its record.

A neuron of a gated feed-forward layer is its gate row, its up row and its down column. The bundle
stores all three side by side, so that whoever owns a neuron reads one stretch of memory:

    | gate row, D elements | up row, D elements | down column, D elements | zeros up to 64 bytes |

Used by the bundle writer, the weight store and everyone who hands records to the native kernels.
Holds no weights.
"""

from dataclasses import dataclass

from hotcold.runtime.model import ModelSpec

RECORD_ALIGNMENT = 64


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least value."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class NeuronRecord:
    """Byte layout of one neuron; every record of a layer has the same.

    Args:
        gate_offset: bytes from the start of the record to its gate row.
        up_offset: bytes to its up row.
        down_offset: bytes to its down column.
        record_bytes: distance between two records, a multiple of 64.
    """

    gate_offset: int
    up_offset: int
    down_offset: int
    record_bytes: int

    @classmethod
    def for_spec(cls, spec: ModelSpec) -> "NeuronRecord":
        """The layout of this model's neurons."""
        row = spec.d_model * spec.element_bytes
        return cls(0, row, 2 * row, round_up(3 * row, RECORD_ALIGNMENT))
