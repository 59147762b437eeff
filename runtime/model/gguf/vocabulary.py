"""A tokenizer of the `tokenizers` library from a vocabulary: of a GGUF file or of SentencePiece.

"llama" is SentencePiece's BPE, whose merges are the pairs of pieces that make a piece, best score
first; "unigram" its other model; "gpt2" is byte-level BPE with merges, its text cut by one of the
rules that llama.cpp knows by name (tokenizer.ggml.pre). Sources: llama.cpp's llama-vocab.cpp;
transformers' convert_slow_tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "\u2581"
SPLITS_LIMIT = 1 << 25  # pairs that are looked at to find merges; the largest vocabularies have 3e6
PIECE_LIMIT = 1 << 10  # characters; SentencePiece's own limit is 512 by default at most

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASED = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _CASED.replace("{digits}", r"\p{N}{1,3}"), _CASED.replace("{digits}", r"\p{N}")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")
_DIGITS = (r"\p{N}", _GPT2)
PRE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "olmo", "jais", "mpt", "phi-2", "gigachat"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3"), (_LLAMA3,)
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    "falcon": _FALCON,
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
WHOLE_FIRST = ("llama-bpe", "llama3", "llama-v3", "falcon3")  # a known word is not merged anew


class Type(IntEnum):
    """What a token is; the same numbers in GGUF and in SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Everything a tokenizer is made of.

    Args:
        kind: "llama", "unigram" or "gpt2".
        tokens, scores, types: by id; types may be empty: all normal.
        merges: of "gpt2", each "left right".
        pre: of "gpt2", a key of PRE.
        space_first: a space goes before text, and before text behind a control token.
        single_spaces: runs of spaces become one, those at the ends none.
        charsmap: SentencePiece's compiled normalisation; empty: none.
        special: ids by "bos", "eos", "unk" and "pad".
        add_bos, add_eos: put around every text.
    """

    kind: str
    tokens: Sequence[str]
    scores: Sequence[float] = ()
    types: Sequence[int] = ()
    merges: Sequence[str] = ()
    pre: str = "default"
    space_first: bool = True
    single_spaces: bool = False
    charsmap: bytes = b""
    special: dict[str, int] | None = None
    add_bos: bool = False
    add_eos: bool = False

    def text(self, name: str) -> str | None:
        """The token of a special name, "bos" for example."""
        at = (self.special or {}).get(name)
        return None if at is None else self.tokens[at]


def check(words: Vocabulary) -> None:
    """Refuse what cannot be a vocabulary.

    Raises:
        ValueError: the text says what is wrong.
    """
    count = len(words.tokens)
    if not count:
        raise ValueError("the vocabulary is empty")
    for name, other in (("scores", words.scores), ("types", words.types)):
        if len(other) not in (0, count):
            raise ValueError(f"{count} tokens have {len(other)} {name}")
    for name, at in (words.special or {}).items():
        if type(at) is not int or not 0 <= at < count:
            raise ValueError(f"the {name} token is {at!r:.40}, the vocabulary has {count}")
    if words.kind == "gpt2":
        if words.pre not in PRE:
            raise ValueError(f"its text is cut by rule {words.pre!r:.60}, which is not known")
        return
    if len(words.scores) != count:
        raise ValueError("its pieces have no scores")
    longest = max(map(len, words.tokens))
    if longest > PIECE_LIMIT or sum(map(len, words.tokens)) > SPLITS_LIMIT:
        raise ValueError(
            f"its pieces are too long: {longest} characters, of {PIECE_LIMIT}, or "
            f"{sum(map(len, words.tokens))} in all, of {SPLITS_LIMIT}"
        )


def make_tokenizer(words: Vocabulary) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary.

    Raises:
        ValueError: it cannot be one; the text says why.
    """
    check(words)
    try:
        tokenizer = _byte_level(words) if words.kind == "gpt2" else _pieces(words)
        _add_tokens(tokenizer, words)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic inside the library derives from BaseException only
        raise ValueError(f"the tokenizers library cannot use it ({str(error)[:200]})") from error
    return tokenizer


def _ids(words: Vocabulary) -> dict[str, int]:
    ids: dict[str, int] = {}
    for at, token in enumerate(words.tokens):
        ids.setdefault(token, at)
    return ids


def _byte_level(words: Vocabulary) -> tokenizers.Tokenizer:
    pairs = []
    for merge in words.merges:
        cut = merge.find(" ", 1)
        if cut > 0:
            pairs.append((merge[:cut], merge[cut + 1 :]))
    whole = words.pre in WHOLE_FIRST
    tokenizer = tokenizers.Tokenizer(models.BPE(_ids(words), pairs, ignore_merges=whole))
    cuts: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in PRE[words.pre]]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces(words: Vocabulary) -> tokenizers.Tokenizer:
    ids, unknown = _ids(words), words.text("unk")
    has_bytes = "<0x41>" in ids
    if words.kind == "unigram":
        pieces = list(zip(words.tokens, map(float, words.scores), strict=True))
        at = (words.special or {}).get("unk")
        tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, at, has_bytes))
    else:
        model = models.BPE(
            ids, merges(words, ids), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes
        )
        tokenizer = tokenizers.Tokenizer(model)
    steps: list[Any] = [normalizers.Precompiled(words.charsmap)] if words.charsmap else []
    if words.single_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" +"), " ")]
    if words.space_first:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back = [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE, " ")]
    strip = [decoders.Strip(" ", 1, 0)] if words.space_first else []
    tokenizer.decoder = decoders.Sequence([*back, *strip])
    return tokenizer


def merges(words: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, in the order in which SentencePiece merges them."""
    types = words.types or [Type.NORMAL] * len(words.tokens)
    found: list[tuple[float, int, int, str, str]] = []
    for piece, at in ids.items():
        if types[at] not in (Type.NORMAL, Type.USER_DEFINED, Type.UNUSED):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-words.scores[at], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_tokens(tokenizer: tokenizers.Tokenizer, words: Vocabulary) -> None:
    kinds = {Type.UNKNOWN: True, Type.CONTROL: True, Type.USER_DEFINED: False}
    for at, kind in enumerate(words.types):
        if kind in kinds:
            added = AddedToken(words.tokens[at], special=kinds[Type(kind)], normalized=False)
            (tokenizer.add_special_tokens if added.special else tokenizer.add_tokens)([added])
    around = {name: words.text(name) for name in ("bos", "eos")}
    before = around["bos"] if words.add_bos else None
    after = around["eos"] if words.add_eos else None
    if before is None and after is None:
        return
    named = [text for text in (before, after) if text is not None]
    tokenizer.add_special_tokens(named)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*([before] if before else []), "$A", *([after] if after else [])],
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in dict.fromkeys(named)],
    )
