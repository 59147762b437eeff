"""The embedded model: what hotcold runs where no model is named.

A plain Hugging Face folder. Replacing its data files replaces the embedded model; no other file
knows its name or its shapes. MODEL_CARD.md says what it is.

May import: nothing
"""

from pathlib import Path


def path() -> Path:
    """The folder: config.json, weights, tokenizer, activation profile and trained predictors."""
    return Path(__file__).absolute().parent
