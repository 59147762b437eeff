"""Formats that a shape does not have, and options that contradict: refused before any is drawn."""

from pathlib import Path

import pytest
from support.planted import options

from hotcold.native.errors import ConfigError
from hotcold.runtime.offline.plant.making import plant


@pytest.mark.parametrize(
    ("shape", "dtype", "form", "match"),
    [
        ("tiny-opt", "float16", "gguf", "Llama models in float16 or float32, this one is opt"),
        ("tiny", "bfloat16", "gguf", "this one is llama in bfloat16"),
        ("tiny", "float32", "powerinfer-gguf", "PowerInfer GGUF .* this one is llama in float32"),
        ("tiny", "int8", "gguf", "this one is llama in int8"),
        ("tiny", "int8", "powerinfer-gguf", "this one is llama in int8"),
        ("tiny", "int8", "hf", "holds no int8 neurons; plant it in float16, and convert it"),
        ("tiny", "float16", "onnx", "choose one of bundle, hf, gguf, powerinfer-gguf"),
    ],
)
def test_what_has_no_such_file_is_refused(
    tmp_path: Path, shape: str, dtype: str, form: str, match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        plant(options(shape, dtype=dtype), tmp_path / "out", form=form, device="cpu")
    assert not list(tmp_path.iterdir())
