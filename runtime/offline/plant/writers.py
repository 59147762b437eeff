"""Writers of planted tensors: straight into a bundle, or into a Hugging Face folder.

A sink is given the layers in order, then what is not part of a layer, and is finished with the
companions (tokenizer, profile, predictors) already in its folder. Neither holds more than a layer.
Called by `making`, into a temporary folder.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hotcold.runtime.model.architectures.base import Source, Sources
from hotcold.runtime.model.architectures.hf_config import CONFIG, GENERATION_CONFIG, Config
from hotcold.runtime.model.architectures.table import find
from hotcold.runtime.model.checkpoints.convert import (
    WEIGHTS,
    model_checksum,
    stamp_new,
    write_header,
)
from hotcold.runtime.model.checkpoints.digest import (
    BlockWriter,
)
from hotcold.runtime.model.checkpoints.layout import layout
from hotcold.runtime.model.checkpoints.quantised import STORED
from hotcold.runtime.model.checkpoints.weight_files import INDEX
from hotcold.runtime.model.neurons import NeuronRecord
from hotcold.runtime.model.spec import NEURON_DTYPES, ModelSpec
from hotcold.runtime.offline.plant.drawing import Guess
from hotcold.runtime.offline.plant.families import hf_config
from hotcold.runtime.offline.plant.streams import TensorStream, raw_pieces

RECORD_CHUNK_BYTES = 64 << 20
Tensors = Mapping[str, torch.Tensor]


class Sink:
    """A format being written; predictors and counts may be files of their own, beside it."""

    def predictor(self, index: int, guess: Guess) -> None:
        """Take the predictor of the layer that comes next, where the format has a place for it."""

    def layer(self, index: int, tensors: Tensors) -> None:
        """Take the next layer, as PlantedLayer names its tensors."""
        raise NotImplementedError

    def ends(self, tensors: Tensors) -> str:
        """Take what is not part of a layer; the model's checksum, "" where it has none."""
        return ""

    def counts(self, counts_LN: NDArray[np.int64]) -> None:
        """Take how often each neuron fired, where the format has a place for it."""

    def finish(self, name: str, source: str) -> None:
        """Write what describes the files; the companions are in the folder by now."""

    def close(self) -> None:
        """Release files and threads. Idempotent."""


class BundleSink(Sink):
    """weights.bin and bundle.json."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder, self._spec = folder, spec
        self._entries, self._total = layout(spec)
        self._out = BlockWriter(folder / WEIGHTS)
        self._sha256 = ""

    def _put(self, stem: str, tensors: Tensors, is_here: Callable[[str], bool]) -> None:
        for name, entry in self._entries.items():
            if not is_here(name):
                continue
            self._out.zeros(entry.offset - self._out.written)
            if name.endswith(".neurons"):
                self._neurons(tensors)
            else:
                tensor = tensors[name.removeprefix(stem)]
                self._append(tensor.to(getattr(torch, entry.dtype)))

    def _append(self, tensor: torch.Tensor) -> None:
        for piece in raw_pieces(tensor):
            self._out.write(piece)

    def layer(self, index: int, tensors: Tensors) -> None:
        """See Sink."""
        stem = f"layers.{index}."
        self._put(stem, tensors, lambda name: name.startswith(stem))

    def _neurons(self, tensors: Tensors) -> None:
        record, gate_ND = NeuronRecord.for_spec(self._spec), tensors["gate"]
        step = max(1, RECORD_CHUNK_BYTES // record.bytes)
        for begin in range(0, len(gate_ND), step):
            n = min(len(gate_ND) - begin, step)
            records = gate_ND.new_zeros(n, record.bytes, dtype=torch.uint8)
            for part in record.parts:
                rows = tensors[part.name][begin : begin + n]
                records[:, part.slice] = _stored(rows, part.format)
            self._append(records)

    def ends(self, tensors: Tensors) -> str:
        """See Sink."""
        self._put("", tensors, lambda name: not name.startswith("layers."))
        self._out.zeros(self._total - self._out.written)
        self._sha256 = self._out.digest()
        self._out.close()
        return model_checksum(self._spec, self._sha256)

    def finish(self, name: str, source: str) -> None:
        """See Sink; leaves a stamp, so that the first opening reads no weights."""
        weights = (self._sha256, self._total)
        stamp_new(self._folder, write_header(self._folder, self._spec, name, source, weights))

    def close(self) -> None:
        """See Sink."""
        self._out.close()


def _stored(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """Rows in a format, as bytes [n, ...]."""
    if kind in NEURON_DTYPES:
        raw = STORED[kind].pack(rows.float().cpu().numpy(), "float32")
        return torch.from_numpy(raw).to(rows.device)
    return rows.to(getattr(torch, kind)).contiguous().view(torch.uint8).view(len(rows), -1)


class HuggingFaceSink(Sink):
    """Sharded safetensors, one shard a layer, with config.json."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder, self._spec = folder, spec
        self._config = hf_config(spec)
        self._write_json(CONFIG, self._config)  # complete at the end, needed for the sources
        config = Config(folder / CONFIG)
        self._sources: Sources = find(config).sources(spec, config)
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._weight_map: dict[str, str] = {}
        self._bytes = 0
        self._open: TensorStream | None = None

    def _write_json(self, file: str, data: Mapping[str, Any]) -> None:
        (self._folder / file).write_text(json.dumps(data, indent=1), encoding="ascii")

    def _shard(self, stem: str, tensors: Tensors, number: int) -> None:
        named = {name: self._sources[stem + name] for name in tensors}
        groups = {name: group for name, group in named.items() if isinstance(group, tuple)}
        announced = {
            source.name: (source.shape, self._dtype) for g in groups.values() for source in g
        }
        file = f"model-{number:05d}-of-{self._spec.n_layers + 1:05d}.safetensors"
        self._weight_map |= dict.fromkeys(announced, file)
        self._open = TensorStream(self._folder / file, announced)
        self._bytes += self._open.bytes
        for name, group in groups.items():
            whole = tensors[name].T if name == "down" else tensors[name]
            for source, part in zip(group, _split(whole, group), strict=True):
                self._open.write(source.name, part.to(self._dtype))
        self._open.finish()

    def layer(self, index: int, tensors: Tensors) -> None:
        """See Sink."""
        self._shard(f"layers.{index}.", tensors, index + 1)

    def ends(self, tensors: Tensors) -> str:
        """See Sink."""
        self._shard("", tensors, self._spec.n_layers + 1)
        return ""

    def finish(self, name: str, source: str) -> None:
        """See Sink."""
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._weight_map}
        ends = {"bos_token_id": self._spec.bos_ids[0], "eos_token_id": self._spec.eos_ids[0]}
        self._write_json(INDEX, index)
        self._write_json(GENERATION_CONFIG, ends)
        self._write_json(CONFIG, {**self._config, "_name_or_path": name, "planted": source})

    def close(self) -> None:
        """See Sink."""
        if self._open is not None:
            self._open.close()


def _split(whole: torch.Tensor, group: tuple[Source, ...]) -> list[torch.Tensor]:
    """A bundle tensor as the checkpoint tensors it is stacked of; rows it leaves out are zeros."""
    at = [[row for run in source.runs for row in run] for source in group]
    parts, found = whole.split([len(rows) for rows in at]), []
    for source, rows, held in zip(group, at, parts, strict=True):
        part = held
        if source.rows is not None:
            part = part.new_zeros(source.shape).index_copy_(
                0, torch.tensor(rows, device=part.device), part
            )
        found.append(part - source.plus if source.plus else part)
    return found
