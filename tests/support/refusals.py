"""A model that is refused: soon, in one line, and with an untouched cache."""

import time
from pathlib import Path
from typing import Any

import pytest
from support.models import TinyLlama, write_llama

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.checkpoints.bundle import resolve_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 13476925163\n"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def refused(model: Path | str, cache: Path, *words: str) -> str:
    """The sentence a model is refused with: soon, one line, and with an untouched cache."""
    begin = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        resolve_model(model, cache=cache)
    text = str(caught.value)
    assert time.monotonic() - begin < 3
    assert "\n" not in text and len(text) < 900
    for word in words:
        assert word in text, text
    assert not list(cache.glob("bundles/*")), "something entered the cache"
    assert str(cache) not in text
    return text


def llama(folder: Path, **kind: Any) -> Path:
    return write_llama(folder, TinyLlama(**kind))
