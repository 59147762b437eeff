"""A folder's tokenizer as the `tokenizers` library has it: tokenizer.json, or GPT-2's older files.

The older ones are vocab.json and merges.txt, as the repositories of OPT have them; which tokens are
special and whether one goes before every text, tokenizer_config.json and special_tokens_map.json
say. Called by the tokenizer, and by `bundle.resolve_model` before a checkpoint is converted.
"""

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from hotcold.native.errors import CheckpointError
from hotcold.runtime.files.impostors import impostor
from hotcold.runtime.files.json_files import read_json_object, regular_file

TOKENIZER = "tokenizer.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
SENTENCEPIECE = "tokenizer.model"
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer, readable or not."""
    path = folder / TOKENIZER
    return path.exists() or path.is_symlink() or _has_byte_level(folder)


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
    if regular_file(folder / SENTENCEPIECE):
        what = impostor(folder / SENTENCEPIECE)
        if "pointer" in what or "empty" in what:
            return CheckpointError(f"{folder / SENTENCEPIECE} {what}")
        return CheckpointError(
            f'{lacks}; its {SENTENCEPIECE} is not read, write the other form once: python -c "from '
            f"transformers import AutoTokenizer as T; T.from_pretrained('{folder}')"
            f".save_pretrained('{folder}')\" (needs sentencepiece and protobuf)"
        )
    half = [name for name in (VOCAB, MERGES) if regular_file(folder / name)]
    if half:
        other = MERGES if half == [VOCAB] else VOCAB
        return CheckpointError(f"{lacks}; it has {half[0]}, which needs {other} beside it: add it")
    return CheckpointError(f"{lacks}; add the one of the model, or give token ids instead of text")


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
