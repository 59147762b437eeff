"""SentencePiece's tokenizer.model, and what it makes of a text: protobuf and merging by hand."""

import struct
from collections.abc import Sequence

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
WORDS = ("h", "e", "l", "o", "w", "r", "d", SPACE, "he", "ll", "lo", "hell", "hello", "wo", "or")
WORDS += (SPACE + "w", SPACE + "wo", "world", "rl", "ld", "orld", SPACE + "h", "el", SPACE + "he")


def vocabulary() -> list[tuple[str, float, int]]:
    """Pieces with scores and types: as Llama 2's, small."""
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    # Scores fall in the order in which BPE learned the pieces; letters come last.
    learned = sorted(WORDS, key=lambda word: (len(word) == 1, len(word), word))
    pieces += [(word, -float(i), NORMAL) for i, word in enumerate(learned)]
    return [*pieces, ("<tool>", 0.0, USER)]


def model_bytes(
    pieces: Sequence[tuple[str, float, int]] | None = None, bpe: bool = True, spaces: bool = False
) -> bytes:
    """A ModelProto."""
    data = b""
    for text, score, kind in pieces or vocabulary():
        raw = text.encode()
        one = b"\x0a" + _varint(len(raw)) + raw + b"\x15" + struct.pack("<f", score)
        one += b"\x18" + _varint(kind)
        data += b"\x0a" + _varint(len(one)) + one
    trainer = b"\x18" + _varint(2 if bpe else 1)
    normalizer = b"\x0a\x08identity" + b"\x18\x01" + b"\x20" + _varint(int(spaces))
    data += b"\x12" + _varint(len(trainer)) + trainer
    return data + b"\x1a" + _varint(len(normalizer)) + normalizer


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def encode(text: str, pieces: Sequence[tuple[str, float, int]] | None = None) -> list[int]:
    """Merge the best-scored pair of neighbours until none makes a piece; bytes for the rest."""
    table = {word: (i, score) for i, (word, score, kind) in enumerate(pieces or vocabulary())}
    parts = list(SPACE + text.replace(" ", SPACE)) if text else []
    while True:
        pairs = [(parts[i] + parts[i + 1], i) for i in range(len(parts) - 1)]
        known = [(-table[word][1], i, word) for word, i in pairs if word in table]
        if not known:
            break
        _, at, word = min(known)
        parts[at : at + 2] = [word]
    ids: list[int] = []
    for part in parts:
        found = [table[part][0]] if part in table else [3 + byte for byte in part.encode()]
        ids += found
    return ids
