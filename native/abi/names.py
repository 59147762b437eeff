"""The words for what the headers number: operations, roles, dtypes, norms, activations, parts.

Files, options and messages spell them as here; each word is made of the member's name in the
header, so a new member has its word at once.
"""

import re
from enum import IntEnum
from typing import TypeVar

from hotcold.native.abi.generated import (
    Activation,
    Dtype,
    Epilogue,
    Norm,
    Op,
    OperatorKind,
    Part,
    Phase,
    PredictorForm,
    Role,
    Stream,
    When,
)

E = TypeVar("E", bound=IntEnum)
_LETTERS = {"F": "float", "BF": "bfloat", "I": "int"}


def words(members: type[E]) -> dict[str, E]:
    """Members by word, in the order of their numbers: ONE_ROW is "one row"."""
    return {member.name.lower().replace("_", " "): member for member in members}


def _dtype(member: Dtype) -> tuple[str, int]:
    """Word and bits: F16 is a float16."""
    letters, bits = re.findall("[A-Z]+|[0-9]+", member.name)
    return f"{_LETTERS[letters]}{bits}", int(bits)


ROLES = words(Role)
OPS = tuple(words(Op))  # in the order of their numbers, as PHASES
PHASES = tuple(words(Phase))
DTYPES: dict[str, Dtype] = {_dtype(member)[0]: member for member in Dtype}
DTYPE_BYTES: dict[str, int] = {word: bits // 8 for word, bits in map(_dtype, Dtype)}
WEIGHT_DTYPES = tuple(word for word, dtype in DTYPES.items() if dtype is not Dtype.I8)
NORMS = words(Norm)
ACTIVATIONS = words(Activation)
FORMS = words(PredictorForm)
PARTS = words(Part)
WHEN = words(When)
EPILOGUES = words(Epilogue)
OPERATORS = words(OperatorKind)
STREAMS = words(Stream)
