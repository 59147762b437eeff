"""Hugging Face folders: which tensor of the checkpoint is which tensor of a bundle.

Called by `bundle.resolve_model`. Opening a checkpoint reads config and headers only and refuses
whatever cannot be converted, with the tensor's name; rows are read when the conversion asks.
NaN and Inf among the weights are not looked for here.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from hotcold.runtime.errors import CheckpointError
from hotcold.runtime.formats.dtypes import Raw, convert
from hotcold.runtime.formats.hf_config import CONFIG, Config, config_dtype, read_spec
from hotcold.runtime.formats.safetensors_file import TensorReader
from hotcold.runtime.model import DType, ModelSpec

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64 << 20  # rows are read, converted and written in blocks of about this size
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _parts(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    """Checkpoint tensors, stacked by rows, behind each name of a bundle.

    A layer's neurons appear as their three matrices `layers.{i}.gate`, `.up` and `.down`.
    """
    parts: dict[str, tuple[str, ...]] = {"embed": (EMBED,), "final_norm": ("model.norm.weight",)}
    if not spec.tied:
        parts["head"] = (HEAD,)
    for i in range(spec.n_layers):
        source, name = f"model.layers.{i}", f"layers.{i}"
        parts[f"{name}.attention_norm"] = (f"{source}.input_layernorm.weight",)
        parts[f"{name}.ffn_norm"] = (f"{source}.post_attention_layernorm.weight",)
        parts[f"{name}.qkv"] = tuple(f"{source}.self_attn.{p}_proj.weight" for p in "qkv")
        parts[f"{name}.o"] = (f"{source}.self_attn.o_proj.weight",)
        for part in ("gate", "up", "down"):
            parts[f"{name}.{part}"] = (f"{source}.mlp.{part}_proj.weight",)
    return parts


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape each checkpoint tensor must have."""
    d, n, q, kv = spec.d_model, spec.n_neurons, spec.q_dim, spec.kv_dim
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (d,)}
    shapes[EMBED] = (spec.vocab_size, d)
    if not spec.tied:
        shapes[HEAD] = (spec.vocab_size, d)
    for i in range(spec.n_layers):
        source = f"model.layers.{i}"
        shapes[f"{source}.input_layernorm.weight"] = (d,)
        shapes[f"{source}.post_attention_layernorm.weight"] = (d,)
        for part, shape in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
            shapes[f"{source}.self_attn.{part}_proj.weight"] = shape
        for part, shape in {"gate": (n, d), "up": (n, d), "down": (d, n)}.items():
            shapes[f"{source}.mlp.{part}_proj.weight"] = shape
    return shapes


def _listing(names: Iterable[str], limit: int = 4) -> str:
    """The first few names, and how many there are beyond them."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"{name:.100}" for name in names[:limit]) + more


class Checkpoint:
    """An opened Hugging Face checkpoint, everything but the weights' values checked.

    Args:
        folder: holds config.json and safetensors.
        dtype: dtype of the bundle's matrices; None: as stored. Where the checkpoint mixes dtypes,
            None means the one config.json announces, else float32.

    Attributes:
        spec: the model as the bundle will hold it.

    Raises:
        CheckpointError: the folder cannot be used; the sentence says why.
    """

    def __init__(self, folder: Path, dtype: DType | None = None) -> None:
        self.folder = folder
        config = Config(folder / CONFIG)
        spec = read_spec(config, dtype or "float32")
        self._reader = TensorReader(folder)
        self._check_tensors(config, spec)
        if spec.tied:
            spec = replace(spec, tied=self._is_tied())
        announced = config_dtype(config)
        if dtype is None:
            spec = replace(spec, dtype=self._stored_dtype(announced, spec))
        self.spec = spec
        self._parts = _parts(spec)
        if EMBED not in self._reader.tensors:
            self._parts["embed"] = (HEAD,)

    def _check_tensors(self, config: Config, spec: ModelSpec) -> None:
        """Every tensor is there, has its shape and a dtype we read; others are reported."""
        shapes, present = _shapes(spec), self._reader.tensors
        if spec.tied and HEAD in present:
            shapes[HEAD] = shapes[EMBED]
            if EMBED not in present:  # a tied pair may be stored under either name
                del shapes[EMBED]
        missing = [name for name in shapes if name not in present]
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} of {len(shapes)} tensors that "
                f"{config.path.name} asks for: {_listing(missing)}; download the checkpoint again"
            )
        for name, shape in shapes.items():
            if present[name].shape != shape:
                raise CheckpointError(
                    f"tensor {name} of {self.folder} has shape {list(present[name].shape)}, "
                    f"{config.path.name} implies {list(shape)}; one of the two is another model's"
                )
            self._reader.dtype(name)
        others = [name for name in present if name not in shapes and "inv_freq" not in name]
        biases = [name for name in others if name.endswith(".bias")]
        if biases:
            raise CheckpointError(
                f"{self.folder} holds biases, which a Llama has not: {_listing(biases)}; use a "
                "model without"
            )
        if others:
            logger.warning("%s: ignoring tensors no Llama has: %s", self.folder, _listing(others))

    def _is_tied(self) -> bool:
        """Whether a pair that config.json ties is one: two different matrices are believed."""
        if EMBED not in self._reader.tensors or HEAD not in self._reader.tensors:
            return True
        if self._reader.dtype(EMBED) == self._reader.dtype(HEAD):
            pairs = zip(self._blocks(EMBED), self._blocks(HEAD), strict=True)
            if all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs):
                return True
        logger.warning(
            "%s: config.json ties the head to the embedding, but the checkpoint holds two "
            "different matrices; keeping both, as transformers does",
            self.folder,
        )
        return False

    def _stored_dtype(self, announced: str | None, spec: ModelSpec) -> DType:
        """The one dtype of all matrices; if they differ, config.json's, else float32."""
        names = [n for n in _shapes(spec) if n in self._reader.tensors and "norm" not in n]
        stored = {self._reader.dtype(name) for name in names}
        dtype = stored.pop() if len(stored) == 1 else announced or "float32"
        return cast(DType, dtype)

    def _blocks(self, source: str) -> Iterator[Raw]:
        """All rows of a checkpoint tensor as stored, a block at a time."""
        shape = self._reader.tensors[source].shape
        step = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * 4))
        for start in range(0, shape[0], step):
            yield self._reader.rows(source, start, min(start + step, shape[0]))

    def _converted(self, raw: Raw, source: str, dtype: str) -> Raw:
        try:
            return convert(raw, self._reader.dtype(source), dtype)
        except OverflowError as error:
            raise CheckpointError(
                f"tensor {source} of {self.folder}: {error}; use dtype bfloat16 or float32"
            ) from error

    def matrix(self, name: str) -> Iterator[Raw]:
        """A bundle tensor's rows in blocks, top first, in the bundle's dtype (norms float32)."""
        dtype = "float32" if name.endswith("norm") else self.spec.dtype
        for source in self._parts[name]:
            for raw in self._blocks(source):
                yield self._converted(raw, source, dtype)

    def neurons(self, layer: int, step: int) -> Iterator[tuple[Raw, Raw, Raw]]:
        """(gate rows, up rows, down columns as rows) of a layer, step neurons at a time."""
        gate, up, down = (
            self._parts[f"layers.{layer}.{part}"][0] for part in ("gate", "up", "down")
        )
        down_DN = self._reader.rows(down)  # its columns are what a record needs: read whole
        for start in range(0, self.spec.n_neurons, step):
            stop = min(start + step, self.spec.n_neurons)
            rows = [(name, self._reader.rows(name, start, stop)) for name in (gate, up)]
            rows.append((down, down_DN[:, start:stop].T))
            a, b, c = (self._converted(raw, name, self.spec.dtype) for name, raw in rows)
            yield a, b, c

    def weight_files(self) -> list[Path]:
        """The files the weights come from, index included."""
        return list(self._reader.files)

    def close(self) -> None:
        """Close the open shard."""
        self._reader.close()
