"""A model small enough to launch in a blink."""

from pathlib import Path

import pytest
from support.models import TinyLlama, write_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = TinyLlama(d=35, layers=3, neurons=51, heads=5, kv_heads=1, head_dim=6, context=96)
    return write_llama(tmp_path_factory.mktemp("models") / "tiny", model)
