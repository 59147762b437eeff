"""GPT-2's older tokenizer files, vocab.json and merges.txt, as the repositories of OPT have them.

Called by the tokenizer where a folder has no tokenizer.json. Which tokens are special and whether
one goes before every text, tokenizer_config.json and special_tokens_map.json say.
"""

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from hotcold.runtime.files.json_files import read_json_object, regular_file

VOCAB, MERGES = "vocab.json", "merges.txt"
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def has_byte_level(folder: Path) -> bool:
    """Whether a folder holds both files."""
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


def byte_level_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of vocab.json and merges.txt.

    Raises:
        Exception: what the library says of files it cannot use.
    """
    read_json_object(folder / VOCAB)  # says what is wrong with a file that is no JSON
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
