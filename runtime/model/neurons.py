"""NeuronRecord: where the parts of one neuron lie inside its record.

A neuron of a gated feed-forward layer is its gate row, its up row and its down column; one of a
plain ReLU layer a row of fc1, which decides whether it fires and is called gate row here too, a
column of fc2 and a bias. The bundle stores all parts side by side, so that whoever owns a neuron
reads one stretch of memory:

    gated  | gate row, D elements | up row, D elements | down column, D elements | zeros up to 64 |
    plain  | gate row, D elements | down column, D elements | bias, float32 | zeros up to 64 bytes |

Used by the bundle writer, the weight store and everything that passes records to the native
kernels. Holds no weights.
"""

from dataclasses import dataclass

from hotcold.runtime.model.spec import ModelSpec

RECORD_ALIGNMENT = 64
ABSENT = -1


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least value."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class NeuronRecord:
    """Byte layout of one neuron; every record of a layer has the same.

    Args:
        gate_offset: bytes from the start of the record to its gate row.
        up_offset: bytes to its up row; ABSENT where there is none.
        down_offset: bytes to its down column.
        record_bytes: distance between two records, a multiple of 64.
        bias_offset: bytes to its bias, one float32; 0 where there is none.
    """

    gate_offset: int
    up_offset: int
    down_offset: int
    record_bytes: int
    bias_offset: int = 0

    @classmethod
    def for_spec(cls, spec: ModelSpec) -> "NeuronRecord":
        """The layout of this model's neurons."""
        row = spec.d_model * spec.element_bytes
        if spec.gated:
            return cls(0, row, 2 * row, round_up(3 * row, RECORD_ALIGNMENT))
        end = 2 * row + (4 if spec.biases else 0)  # 2 * row is a multiple of 4: the bias is aligned
        return cls(0, ABSENT, row, round_up(end, RECORD_ALIGNMENT), 2 * row if spec.biases else 0)
