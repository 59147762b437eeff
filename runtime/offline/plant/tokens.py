"""A tokenizer for planted models: bytes in, bytes and numbered words out.

Text is split into its UTF-8 bytes (ids 3 to 258); ids above are words "w259", "w260" ... that only
generation produces, so that every id of any vocabulary has a text. Written by `writers`.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from hotcold.runtime.model.checkpoints.tokenizer_files import TOKENIZER

SPECIALS = ("<unk>", "<s>", "</s>")
SPACE = "\u0120"  # a blank, in the byte-level alphabet
CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


def byte_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A tokenizer with exactly this many ids; `<s>` begins every prompt."""
    words = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += [f"{SPACE}w{i}" for i in range(len(words), vocab_size)]
    vocab = {word: i for i, word in enumerate(words[:vocab_size])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """tokenizer.json and tokenizer_config.json of a folder."""
    byte_tokenizer(vocab_size).save(str(folder / TOKENIZER), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="ascii")
