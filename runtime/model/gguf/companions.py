"""What a bundle takes along from a GGUF file besides weights: tokenizer, template, predictors."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.gguf.header import Header
from hotcold.runtime.model.gguf.tensors import PREDICTOR, GgufReader
from hotcold.runtime.model.gguf.vocabulary import Vocabulary, make_tokenizer

TEMPLATE = "tokenizer.chat_template"
THRESHOLD = "powerinfer.sparse_threshold"
_KINDS = {"llama": "llama", "gpt2": "gpt2", "t5": "unigram"}
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CODES = {"float16": "F16", "float32": "F32"}


def vocabulary_of(header: Header) -> Vocabulary | None:
    """A file's vocabulary; None: it has none.

    Raises:
        CheckpointError: it is of a kind that is not supported, or cannot be right.
    """
    kind = header.keys.get("tokenizer.ggml.model", "none")
    if kind in ("none", "no_vocab"):
        return None
    if kind not in _KINDS:
        raise CheckpointError(
            f"{header.path}: tokenizer {kind!r:.60} is not supported; supported: "
            f"{', '.join(_KINDS)}"
        )

    def key(name: str, default: Any, kind: type) -> Any:  # noqa: ANN401 - a key's value
        value = header.keys.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{header.path}: tokenizer.ggml.{name} is {value!r:.80}, it must be of type "
                f"{kind.__name__}; restore the file"
            )
        return value

    lists = {name: key(name, [], list) for name in ("tokens", "scores", "token_type", "merges")}
    for name, kinds in (("tokens", str), ("merges", str), ("scores", (int, float))):
        if not all(isinstance(one, kinds) for one in lists[name]):
            raise CheckpointError(f"{header.path}: tokenizer.ggml.{name} holds other types")
    special = {
        ours: header.keys.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in _SPECIAL.items()
    }
    pieces = kind == "llama"
    return Vocabulary(
        _KINDS[kind],
        lists["tokens"],
        lists["scores"],
        lists["token_type"],
        lists["merges"],
        pre=key("pre", "default", str),
        space_first=key("add_space_prefix", kind != "gpt2", bool),
        single_spaces=key("remove_extra_whitespaces", False, bool) and kind == "t5",
        charsmap=bytes(b & 255 for b in key("precompiled_charsmap", [], list) if type(b) is int),
        special={name: at for name, at in special.items() if at is not None},
        add_bos=key("add_bos_token", pieces, bool),
        add_eos=key("add_eos_token", kind == "t5", bool),
    )


def companions_of(header: Header) -> dict[str, str]:
    """Text files that a bundle has of a GGUF file, by name.

    Raises:
        CheckpointError: its vocabulary cannot be used.
    """
    files: dict[str, str] = {}
    config: dict[str, Any] = {}
    words = vocabulary_of(header)
    if words is not None:
        try:
            files["tokenizer.json"] = make_tokenizer(words).to_str()
        except ValueError as error:
            raise CheckpointError(
                f"{header.path}: its tokenizer cannot be read: {error}; use its Hugging Face "
                "folder, or give token ids instead of text"
            ) from error
        texts = {name: words.text(name) for name in _SPECIAL}
        config = {f"{name}_token": text for name, text in texts.items() if text is not None}
        files["tokenizer_config.json"] = json.dumps(config)
    template = header.keys.get(TEMPLATE)
    if isinstance(template, str) and template:
        files["chat_template.jinja"] = template
    return files


def write_predictors(reader: GgufReader, layers: int, path: Path) -> None:
    """Write PowerInfer's predictors as predictors.safetensors, a matrix at a time, if it has any.

    Raises:
        CheckpointError: a layer lacks a matrix, or the threshold is no number.
        OSError: the file cannot be written.
    """
    names = [(i, part) for i in range(layers) for part in ("fc1", "fc2")]
    has = {name for name in reader.header.tensors if PREDICTOR.fullmatch(name)}
    if not has:
        return
    missing = [f"blk.{i}.{part}.weight" for i, part in names if f"blk.{i}.{part}.weight" not in has]
    threshold = reader.header.keys.get(THRESHOLD, 0.0)
    if missing or not isinstance(threshold, float) or not np.isfinite(threshold):
        raise CheckpointError(
            f"{reader.header.path} has predictors "
            + (f"and lacks {missing[0]}" if missing else f"and {THRESHOLD} {threshold!r:.40}")
            + "; download it again"
        )
    header: dict[str, Any] = {"__metadata__": {"input": "residual", "threshold": repr(threshold)}}
    end = 0
    for i, part in names:
        dtype, shape = reader.predictor_shape(i, part)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        header[f"layers.{i}.{part}"] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [end, end + size],
        }
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for matrix in _matrices(reader, names):
            file.write(np.ascontiguousarray(matrix).reshape(-1).view(np.uint8).data)


def _matrices(reader: GgufReader, names: list[tuple[int, str]]) -> Iterator[NDArray[Any]]:
    for layer, part in names:
        yield reader.predictor(layer, part)
