"""A folder's tokenizer as the `tokenizers` library has it: tokenizer.json, or an older form.

Without it, vocab.json and merges.txt of GPT-2, or SentencePiece's tokenizer.model.

The older ones are vocab.json and merges.txt, as the repositories of OPT have them; which tokens are
special and whether one goes before every text, tokenizer_config.json and special_tokens_map.json
say. Called by the tokenizer, and by `bundle.resolve_model` before a checkpoint is converted.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import file_bytes, read_json_object, regular_file
from hotcold.runtime.model.gguf.sentencepiece import read_model
from hotcold.runtime.model.gguf.vocabulary import make_tokenizer

TOKENIZER = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
SENTENCEPIECE, SENTENCEPIECE_LIMIT_BYTES = "tokenizer.model", 64 << 20
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer, readable or not."""
    path = folder / TOKENIZER
    there = path.exists() or path.is_symlink() or _has_byte_level(folder)
    return there or has_sentencepiece(folder)


def has_sentencepiece(folder: Path) -> bool:
    """Whether a folder's only tokenizer is tokenizer.model."""
    path = folder / TOKENIZER
    other = path.exists() or path.is_symlink() or _has_byte_level(folder)
    return not other and regular_file(folder / SENTENCEPIECE)


def _has_byte_level(folder: Path) -> bool:
    return regular_file(folder / VOCAB) and regular_file(folder / MERGES)


def special_text(folder: Path, key: str) -> str | None:
    """What a folder's tokenizer files call, say, the "eos_token"; None where they name none."""
    for name in CONFIGS:
        if regular_file(folder / name):
            value = read_json_object(folder / name).get(key)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                return text
    return None


def read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder.

    Raises:
        CheckpointError: it is missing or cannot be read; says what is there and what to do.
    """
    path = folder / TOKENIZER
    if has_sentencepiece(folder):
        return _sentencepiece(folder)
    older = not regular_file(path) and not path.is_symlink() and _has_byte_level(folder)
    if older:
        path = folder / VOCAB
    elif not regular_file(path):
        raise no_tokenizer(folder)
    read_json_object(path)  # says what is wrong with a file that is no JSON
    try:
        if older:
            return _byte_level_tokenizer(folder)
        return tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # a panic inside the library derives from BaseException only
        what = (
            older and impostor(folder / MERGES) and f"{MERGES} {impostor(folder / MERGES)}"
        ) or (
            f"the tokenizers library cannot read it ({str(error)[:200]}); restore the file, or "
            "update the library with `pip install -U tokenizers`"
        )
        raise CheckpointError(f"{path} is not a tokenizer: {what}") from error


def no_tokenizer(folder: Path) -> CheckpointError:
    """The error for a folder without a tokenizer we read: what it has, and how to get one."""
    lacks = f"{folder} has no {TOKENIZER}, so text cannot be turned into tokens"
    what = impostor(folder / TOKENIZER)
    if what:
        return CheckpointError(f"{folder / TOKENIZER} {what}")
    if has_sentencepiece(folder):
        try:
            _sentencepiece(folder)
        except CheckpointError as error:
            return error
    half = [name for name in (VOCAB, MERGES) if regular_file(folder / name)]
    if half:
        other = MERGES if half == [VOCAB] else VOCAB
        return CheckpointError(f"{lacks}; it has {half[0]}, which needs {other} beside it: add it")
    return CheckpointError(f"{lacks}; add the one of the model, or give token ids instead of text")


def _sentencepiece(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of tokenizer.model and what tokenizer_config.json adds to it."""
    path = folder / SENTENCEPIECE
    said: dict[str, Any] = {}
    for name in reversed(CONFIGS):
        if regular_file(folder / name):
            said |= read_json_object(folder / name)
    try:
        size = file_bytes(path)
        if size > SENTENCEPIECE_LIMIT_BYTES:
            raise ValueError(f"it has {size} bytes, at most {SENTENCEPIECE_LIMIT_BYTES} can be")
        words = read_model(path.read_bytes())
        flags = {key: said[key] for key in ("add_bos_token", "add_eos_token") if key in said}
        tokenizer = make_tokenizer(
            replace(
                words,
                add_bos=flags.get("add_bos_token", True) is True,
                add_eos=flags.get("add_eos_token", False) is True,
            )
        )
        added = said.get("added_tokens_decoder")
        for number, entry in sorted(
            (added if isinstance(added, dict) else {}).items(), key=_number
        ):
            text = entry.get("content") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text:
                raise ValueError(f"{CONFIGS[0]} adds {entry!r:.80} as token {number:.20}")
            one = tokenizers.AddedToken(
                text, special=entry.get("special") is True, normalized=False
            )
            (tokenizer.add_special_tokens if one.special else tokenizer.add_tokens)([one])
            if str(tokenizer.token_to_id(text)) != number:
                raise ValueError(
                    f"{CONFIGS[0]} adds {text!r:.80} as token {number:.20}, out of turn"
                )
        return tokenizer
    except (ValueError, OSError) as error:
        what = impostor(path) or f"is no SentencePiece model ({error}); download it again"
        raise CheckpointError(f"{path} {what}") from error


def _number(item: tuple[str, object]) -> int:
    return int(item[0])


def _byte_level_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of vocab.json and merges.txt; raises what the library does."""
    config = {}
    if regular_file(folder / CONFIGS[0]):
        config = read_json_object(folder / CONFIGS[0])
    model = models.BPE.from_file(str(folder / VOCAB), str(folder / MERGES))
    tokenizer = tokenizers.Tokenizer(model)
    prefix = config.get("add_prefix_space") is True
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    texts = {key: special_text(folder, key) for key in SPECIAL}
    known = {text for text in texts.values() if text and tokenizer.token_to_id(text) is not None}
    tokenizer.add_special_tokens(sorted(known))
    bos = texts["bos_token"]
    if config.get("add_bos_token") is True and bos in known:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer
