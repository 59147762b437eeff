"""Planted tensors as one GGUF file, for llama.cpp or for PowerInfer; see runtime/weights/gguf.py.

A sink as in `writers`: names and shapes are announced first, the tensors follow a layer at a time.
PowerInfer's folder also gets the counts its solver reads, activation/activation_{i}.pt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.native.errors import ConfigError
from hotcold.runtime.model.gguf.companions import THRESHOLD as THRESHOLD_KEY
from hotcold.runtime.model.gguf.header import POWERINFER_MAGIC
from hotcold.runtime.model.gguf.vocabulary import SPACE
from hotcold.runtime.model.spec import ModelSpec
from hotcold.runtime.offline.plant.drawing import Guess
from hotcold.runtime.offline.plant.streams import raw_bytes
from hotcold.runtime.offline.plant.tokens import SPECIALS, byte_tokenizer
from hotcold.runtime.offline.plant.writers import Sink
from hotcold.runtime.weights.gguf import (
    check_gguf,
    end_tensors,
    gguf_package,
    layer_tensors,
    open_gguf,
)

FILE, POWERINFER_FILE = "model.gguf", "model.powerinfer.gguf"
COUNTS = "activation"
Tensors = Mapping[str, torch.Tensor]


class GgufSink(Sink):
    """One file, and for PowerInfer the folder of counts.

    `hidden` is the width of the predictors; None: not PowerInfer's file.

    Raises:
        ConfigError: the model has no such file.
    """

    def __init__(self, folder: Path, spec: ModelSpec, hidden: int | None = None) -> None:
        check_gguf(spec, hidden is not None)
        if spec.vocab_size < len(SPECIALS) + 256:
            raise ConfigError(f"a vocabulary of {spec.vocab_size} has no room for all bytes")
        self._folder, self._spec, self._hidden = folder, spec, hidden
        self._path = folder / (FILE if hidden is None else POWERINFER_FILE)
        self._writer = open_gguf(self._path, spec, "planted")
        self._begun = False
        _add_vocabulary(self._writer, spec.vocab_size)
        self._announce()

    def _announce(self) -> None:
        spec, d, n = self._spec, self._spec.d_model, self._spec.n_neurons

        def blank(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device="meta")

        layer = {"attention_norm": blank(d), "ffn_norm": blank(d), "o": blank(d, spec.q_dim)}
        layer["qkv"] = blank(spec.q_dim + 2 * spec.kv_dim, d)
        layer |= {part: blank(n, d) for part in ("gate", "up", "down")}
        for index in range(spec.n_layers):
            named = layer_tensors(spec, index, layer, self._hidden is not None)
            if self._hidden is not None:
                named |= _predictor(index, blank(self._hidden, d), blank(n, self._hidden))
            self._announce_all(named)
        v, e = spec.vocab_size, spec.embed_width
        self._announce_all(
            end_tensors({"embed": blank(v, e), "head": blank(v, e), "final_norm": blank(d)})
        )

    def _announce_all(self, named: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in named.items():
            dtype = self._dtype(tensor)
            size = tensor.numel() * dtype.itemsize
            self._writer.add_tensor_info(name, tuple(tensor.shape), dtype, size)

    def _dtype(self, tensor: torch.Tensor) -> np.dtype[Any]:
        return np.dtype(self._spec.dtype if tensor.ndim == 2 else np.float32)

    def _put(self, named: Tensors) -> None:
        for tensor in named.values():
            dtype = self._dtype(tensor)
            held = tensor.to(getattr(torch, dtype.name))
            self._writer.write_tensor_data(np.frombuffer(raw_bytes(held), dtype))

    def predictor(self, index: int, guess: Guess) -> None:
        """See Sink: into PowerInfer's file. The first one's threshold is the file's."""
        if self._hidden is None:
            return
        self._begin(guess.threshold)
        self._guess = _predictor(index, guess.fc1, guess.fc2)

    def _begin(self, threshold: float | None = None) -> None:
        if self._begun:
            return
        self._begun = True
        if threshold is not None:
            self._writer.add_float32(THRESHOLD_KEY, threshold)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()

    def layer(self, index: int, tensors: Tensors) -> None:
        """See Sink."""
        self._begin()
        self._put(layer_tensors(self._spec, index, tensors, self._hidden is not None))
        if self._hidden is not None:
            self._put(self._guess)

    def ends(self, tensors: Tensors) -> str:
        """See Sink."""
        order = ("embed", "head", "final_norm")
        self._put(end_tensors({name: tensors[name] for name in order}))
        return ""

    def counts(self, counts_LN: NDArray[np.int64]) -> None:
        """See Sink: one file a layer, as PowerInfer's solver reads them."""
        if self._hidden is None:
            return
        folder = self._folder / COUNTS
        folder.mkdir()
        for index, counts_N in enumerate(counts_LN):
            torch.save(torch.from_numpy(counts_N.copy()), folder / f"activation_{index}.pt")

    def finish(self, name: str, source: str) -> None:
        """See Sink."""
        self._writer.close()
        if self._hidden is not None:
            with self._path.open("r+b") as file:
                file.write(POWERINFER_MAGIC)

    def close(self) -> None:
        """See Sink."""
        self._writer.close()


def _predictor(index: int, fc1: torch.Tensor, fc2: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"blk.{index}.fc1.weight": fc1, f"blk.{index}.fc2.weight": fc2}


def _bytes_by_letter() -> dict[str, int]:
    """The byte behind each letter of the byte-level alphabet (GPT-2's bytes_to_unicode)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(byte): byte for byte in visible}
    return letters | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _add_vocabulary(writer: Any, size: int) -> None:
    """The planted tokenizer's words in SentencePiece's terms: bytes, and words nobody types."""
    types = gguf_package().TokenType
    byte_of = _bytes_by_letter()
    words = sorted(byte_tokenizer(size).get_vocab().items(), key=lambda item: item[1])
    tokens, kinds = [], []
    for word, _ in words:
        if word in SPECIALS:
            tokens.append(word)
            kinds.append(types.UNKNOWN if word == SPECIALS[0] else types.CONTROL)
        elif byte_of.get(word) == 0x20:  # which SentencePiece never sees as a byte
            tokens.append(SPACE)
            kinds.append(types.NORMAL)
        elif word in byte_of:
            tokens.append(f"<0x{byte_of[word]:02X}>")
            kinds.append(types.BYTE)
        else:
            tokens.append(SPACE + word[1:])
            kinds.append(types.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
