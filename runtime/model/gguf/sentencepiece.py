"""SentencePiece's tokenizer.model: the few fields of its protobuf that make a tokenizer.

Read here, without the sentencepiece or protobuf packages: a message is a run of tag and value, and
everything that is not asked for is skipped. Source: sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from typing import Any

from hotcold.runtime.model.gguf.vocabulary import Type, Vocabulary

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of the model
PIECE, SCORE, TYPE = 1, 2, 3  # of a piece
MODEL_TYPE, UNK_ID, BOS_ID, EOS_ID, PAD_ID = 3, 40, 41, 42, 43  # of the trainer
CHARSMAP, DUMMY_PREFIX, EXTRA_SPACES = 2, 3, 4  # of the normalizer
KINDS = {1: "unigram", 2: "llama"}  # by the trainer's model type
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
DEFAULT_IDS = {"unk": (UNK_ID, 0), "bos": (BOS_ID, 1), "eos": (EOS_ID, 2), "pad": (PAD_ID, -1)}


def read_model(data: bytes) -> Vocabulary:
    """The vocabulary of a tokenizer.model's bytes.

    Raises:
        ValueError: it is damaged, or of a model that is not supported.
    """
    pieces: list[bytes] = []
    parts: dict[int, dict[int, Any]] = {TRAINER: {}, NORMALIZER: {}}
    for field, value in _fields(data):
        if field == PIECES and isinstance(value, bytes):
            pieces.append(value)
        elif field in parts and isinstance(value, bytes):
            parts[field] |= dict(_fields(value))
    read = [dict(_fields(piece)) for piece in pieces]
    trainer, normalizer = parts[TRAINER], parts[NORMALIZER]
    kind = trainer.get(MODEL_TYPE, 1)
    if kind not in KINDS:
        raise ValueError(f"its model type is {kind}, only unigram (1) and BPE (2) are read")
    try:
        texts = [bytes(piece.get(PIECE, b"")).decode() for piece in read]
        charsmap = bytes(normalizer.get(CHARSMAP, b""))
    except TypeError as error:
        raise ValueError("a field has another type") from error
    ids = {name: _signed(trainer.get(field, at)) for name, (field, at) in DEFAULT_IDS.items()}
    return Vocabulary(
        KINDS[kind],
        texts,
        [float(piece.get(SCORE, 0.0)) for piece in read],
        [int(piece.get(TYPE, Type.NORMAL)) for piece in read],
        space_first=bool(normalizer.get(DUMMY_PREFIX, 1)),
        single_spaces=bool(normalizer.get(EXTRA_SPACES, 1)),
        charsmap=charsmap,
        special={name: at for name, at in ids.items() if at >= 0},
    )


def _signed(value: Any) -> int:  # noqa: ANN401 - a field's value
    number = int(value)
    return number - (1 << 64) if number >> 63 else number


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise ValueError("a number has more than ten bytes")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field number and value: an int, bytes, or a float for four bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"field {field} has wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"field {field} takes {size} bytes, {len(data) - at} are left")
        piece = data[at : at + size]
        at += size
        yield field, struct.unpack("<f", piece)[0] if wire == FIXED32 else piece
