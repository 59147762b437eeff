"""Every architecture with the GPU executor on a GPU: the logits of transformers."""

from pathlib import Path
from typing import Any

import pytest
from support.references import check_on_gpu
from support.tiny_models import MODELS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", list(MODELS))
def test_logits_are_the_references(tmp_path: Path, plugin: Any, name: str) -> None:
    folder = MODELS[name].write(tmp_path)
    check_on_gpu(folder, MODELS[name].reference(folder))
