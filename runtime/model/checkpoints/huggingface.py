"""Hugging Face folders and GGUF files: the tensors of a checkpoint, as those of a bundle.

The checkpoint's architecture says which tensor is which (runtime/model/architectures). Called by
`bundle.resolve_model`. Opening a checkpoint reads config and headers only and refuses whatever
cannot be converted, naming the tensor; rows are read when the conversion asks for them. NaN and Inf
among the weights are found as they are read (dtypes.py).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from hotcold.native.errors import CheckpointError
from hotcold.runtime.model.architectures.base import Fill, Source
from hotcold.runtime.model.architectures.hf_config import CONFIG, Config, config_dtype
from hotcold.runtime.model.architectures.table import find
from hotcold.runtime.model.checkpoints.dtypes import RAW_TYPES, Raw, check_finite, convert
from hotcold.runtime.model.checkpoints.layout import layout
from hotcold.runtime.model.checkpoints.safetensors_file import TensorReader
from hotcold.runtime.model.checkpoints.weight_files import listing
from hotcold.runtime.model.gguf.header import is_gguf
from hotcold.runtime.model.gguf.tensors import GgufReader
from hotcold.runtime.model.spec import NEURON_DTYPES, DType, ModelSpec

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64 << 20  # rows are read, converted and written in blocks of about this size
PARTS = ("gate", "up", "down", "bias")  # of a neuron


# Endings of tensors that quantised checkpoints have beside or instead of "weight", and whose.
_QUANTISED: tuple[tuple[str, str], ...] = (
    (".g_idx", "GPTQ"),
    (".qweight", "AWQ or GPTQ"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes, 4 bits"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes, 4 bits"),
    (".SCB", "bitsandbytes, 8 bits"),
    (".absmax", "bitsandbytes"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_scale", "FP8 or compressed-tensors"),
    (".W_q", "HQQ"),
)
# What trainers put before every name, and what takes it away again.
_WRAPPED: tuple[tuple[str, str], ...] = (
    ("base_model.model.", "merge the adapter with peft's merge_and_unload() and save that"),
    ("module.", "save model.module instead of the model in DataParallel"),
    ("_orig_mod.", "save model._orig_mod instead of the compiled model"),
    ("_fsdp_wrapped_module.", "save the unwrapped model"),
    ("language_model.", "this is a part of a larger model; save its language model alone"),
)


class Checkpoint:
    """An opened Hugging Face checkpoint, everything but the weights' values checked.

    Args:
        folder: holds config.json and safetensors; or a GGUF file.
        dtype: dtype of the bundle's matrices; None: as stored. Where the checkpoint mixes dtypes,
            None means the one config.json announces, else float32. "int8": of the neurons alone,
            the other matrices as stored.

    Raises:
        CheckpointError: the folder cannot be used; the sentence says why.
    """

    def __init__(self, folder: Path, dtype: str | None = None) -> None:
        self.folder = folder
        neurons, dtype = (dtype, None) if dtype in NEURON_DTYPES else (None, dtype)
        self.gguf = GgufReader(folder, dtype) if is_gguf(folder) else None
        config = Config(folder, self.gguf.config) if self.gguf else Config(folder / CONFIG)
        self._architecture = find(config)
        spec = self._architecture.read_spec(config, cast(DType, dtype or "float32"))
        self._reader = self.gguf or TensorReader(folder)
        self._sources = self._architecture.sources(spec, config)
        self._check_tensors(config, spec)
        if spec.tied:
            spec = replace(spec, tied=self._is_tied())
        announced = config_dtype(config)
        if dtype is None:
            spec = replace(spec, dtype=self._stored_dtype(announced), neuron_dtype=neurons)
        self.spec = spec
        self._entries = layout(spec)[0]
        if not self._has(self._pair[0]):
            self._sources["embed"] = self._sources["head"]

    @property
    def _pair(self) -> tuple[Source, Source]:
        embed, head = self._sources["embed"], self._sources["head"]
        if isinstance(embed, Fill) or isinstance(head, Fill):
            raise TypeError("the embedding and the head are tensors of a checkpoint")
        return embed[0], head[0]

    def _stored(self, source: Source) -> str:
        """The name a tensor has in this checkpoint: the base model's own has no prefix."""
        bare = source.name.removeprefix(self._architecture.prefix)
        return bare if self._is_bare and source.name not in self._reader.tensors else source.name

    @cached_property
    def _is_bare(self) -> bool:
        prefix = self._architecture.prefix
        return not any(name.startswith(prefix) for name in self._reader.tensors)

    def _has(self, source: Source) -> bool:
        return self._stored(source) in self._reader.tensors

    def _tensors(self) -> list[Source]:
        groups = [group for group in self._sources.values() if not isinstance(group, Fill)]
        return [source for group in groups for source in group]

    def _check_tensors(self, config: Config, spec: ModelSpec) -> None:
        present = self._reader.tensors
        self._refuse_quantised()
        embed, head = self._pair
        wanted = {source.name: source for source in self._tensors()}
        if spec.tied:  # a tied pair may be stored under either name
            spare = embed if self._has(head) else head
            if not self._has(spare):
                del wanted[spare.name]
        missing = [name for name, source in wanted.items() if not self._has(source)]
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} of {len(wanted)} tensors that "
                f"{config.path.name} asks for: {listing(missing)}; {self._way_out(missing, spec)}"
            )
        for source in wanted.values():
            name = self._stored(source)
            if present[name].shape != source.shape:
                found, rows = present[name].shape, source.shape[:1]
                advice = "one of the two is another model's"
                if source in (embed, head) and found[1:] == source.shape[1:] and rows:
                    advice = f"set vocab_size to {found[0]} if tokens were added or cut off"
                raise CheckpointError(
                    f"tensor {name} of {self.folder} has shape {list(found)}, {config.path.name} "
                    f"implies {list(source.shape)}; {advice}"
                )
            self._reader.dtype(name)
        self._report_others({self._stored(source) for source in wanted.values()})

    def _refuse_quantised(self) -> None:
        for ending, what in _QUANTISED:
            for name in self._reader.tensors:
                if name.endswith(ending):
                    raise CheckpointError(
                        f"{self.folder} is quantised by {what} (it holds {name:.100}), which is "
                        "not supported; use the checkpoint in float16 or bfloat16 that it was made "
                        "from"
                    )

    def _way_out(self, missing: list[str], spec: ModelSpec) -> str:
        embed, head = self._pair
        if self.gguf is not None:
            return "download the file again"
        if missing == [head.name] and not spec.tied:
            return (
                'set "tie_word_embeddings": true in config.json if the head is the embedding, as '
                "in many small models (they are saved without it), else download the shard that "
                "holds it"
            )
        if missing == [embed.name] and not spec.tied:
            return 'set "tie_word_embeddings": true in config.json if the embedding is the head'
        wrapped = [(start, text) for start, text in _WRAPPED if self._all_start(start)]
        if wrapped:
            return f"all names begin with {wrapped[0][0]!r}: {wrapped[0][1]}"
        names = list(self._reader.tensors)
        if len(missing) > len(names) // 2 and names:
            return f"it holds {listing(names, 2)}: save it with transformers' save_pretrained"
        return "download the checkpoint again"

    def _all_start(self, start: str) -> bool:
        return bool(self._reader.tensors) and all(n.startswith(start) for n in self._reader.tensors)

    def _report_others(self, used: set[str]) -> None:
        title = self._architecture.title
        others = [n for n in self._reader.tensors if n not in used and "inv_freq" not in n]
        biases = [n for n in others if n.endswith(".bias") and n[: -len("bias")] + "weight" in used]
        if biases:
            raise CheckpointError(
                f"{self.folder} holds biases, which by its config.json this {title} has not: "
                f"{listing(biases)}; use a model without"
            )
        if others:
            logger.warning(
                "%s: ignoring tensors no %s has: %s", self.folder, title, listing(others)
            )

    def _is_tied(self) -> bool:
        """Whether a pair that config.json ties is one matrix; two different matrices stay two."""
        embed, head = self._pair
        if not self._has(embed) or not self._has(head):
            return True
        if self._dtype(embed) == self._dtype(head):
            pairs = zip(self._blocks(embed), self._blocks(head), strict=True)
            if all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs):
                return True
        logger.warning(
            "%s: config.json ties the head to the embedding, but the checkpoint holds two "
            "different matrices; keeping both, as transformers does",
            self.folder,
        )
        return False

    def _dtype(self, source: Source) -> str:
        return self._reader.dtype(self._stored(source))

    def _stored_dtype(self, announced: str | None) -> DType:
        """The one dtype of all matrices; if they differ, config.json's, else float32."""
        matrices = [s for s in self._tensors() if len(s.shape) == 2 and self._has(s)]
        stored = {self._dtype(source) for source in matrices}
        dtype = stored.pop() if len(stored) == 1 else announced or "float32"
        return cast(DType, dtype)

    def _blocks(self, source: Source) -> Iterator[Raw]:
        name = self._stored(source)
        step = max(1, BLOCK_BYTES // max(1, math.prod(source.shape[1:]) * 4))
        for run in source.runs:
            for start in range(run.start, run.stop, step):
                yield self._rows(name, start, min(start + step, run.stop))

    def _rows(self, name: str, start: int = 0, stop: int | None = None) -> Raw:
        raw = self._reader.rows(name, start, stop)
        where = f"{name} of {self.folder}"
        check_finite(raw, self._reader.dtype(name), where, start)
        return raw

    def _converted(self, raw: Raw, source: Source, dtype: str) -> Raw:
        try:
            return convert(raw, self._dtype(source), dtype)
        except OverflowError as error:
            raise CheckpointError(
                f"tensor {self._stored(source)} of {self.folder}: {error}; use dtype bfloat16 or "
                "float32"
            ) from error

    def tensor(self, name: str) -> Iterator[Raw]:
        """A bundle tensor's rows in blocks, top first, in the dtype it has in the bundle."""
        parts, dtype = self._sources[name], self._entries[name].dtype
        if isinstance(parts, Fill):
            yield np.full(parts.size, parts.value, RAW_TYPES[dtype])
            return
        for source in parts:
            for raw in self._blocks(source):
                block = self._converted(raw, source, dtype)
                if source.plus or source.times != 1:
                    block = block * np.float32(source.times) + np.float32(source.plus)
                yield block

    def neurons(self, layer: int, step: int) -> Iterator[dict[str, Raw]]:
        """Parts of a layer's neurons, step neurons at a time, one row a neuron.

        "gate" and "up" rows and "down" columns in the spec's dtype, "bias" in float32; those the
        model has.
        """
        found = {part: self._sources.get(f"layers.{layer}.{part}") for part in PARTS}
        parts = {part: group[0] for part, group in found.items() if isinstance(group, tuple)}
        # its columns are what a record needs: read whole
        down_DN = self._rows(self._stored(parts["down"]))
        for start in range(0, self.spec.n_neurons, step):
            stop = min(start + step, self.spec.n_neurons)
            rows: dict[str, Raw] = {}
            for part, source in parts.items():
                raw = down_DN[:, start:stop].T
                if part != "down":
                    raw = self._rows(self._stored(source), start, stop)
                dtype = "float32" if part == "bias" else self.spec.dtype
                rows[part] = self._converted(raw, source, dtype)
            yield rows

    def weight_files(self) -> list[Path]:
        """The files the weights come from, index included."""
        return list(self._reader.files)

    def close(self) -> None:
        """Close the open shard."""
        self._reader.close()
