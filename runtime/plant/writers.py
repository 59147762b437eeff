"""Where planted tensors go: straight into a bundle, or into a Hugging Face folder.

A sink is given the layers in order, then what is not part of a layer, and is finished with the
companions (tokenizer, profile, predictors) already in its folder. Neither holds more than a layer.
Called by `making`, into a temporary folder.
"""

import json
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from hotcold.runtime.formats.convert import COMPANIONS, WEIGHTS, model_checksum, write_header
from hotcold.runtime.formats.digest import RACY_NS, STAMP, file_digest, write_stamp
from hotcold.runtime.formats.hf_config import CONFIG, GENERATION_CONFIG
from hotcold.runtime.formats.layout import layout
from hotcold.runtime.formats.safetensors_file import INDEX
from hotcold.runtime.model import ModelSpec
from hotcold.runtime.neurons import NeuronRecord
from hotcold.runtime.plant.families import find_family
from hotcold.runtime.plant.planting import PlantedLayer
from hotcold.runtime.plant.signal import Signal
from hotcold.runtime.plant.streams import BlockWriter, TensorStream, raw_bytes

RECORD_CHUNK_BYTES = 64 << 20


class Sink(Protocol):
    """A format being written."""

    def layer(self, index: int, layer: PlantedLayer) -> None:
        """Take the next layer."""
        ...

    def ends(self, signal: Signal) -> str:
        """Take embedding, head and final norm; the model's checksum, "" where it has none."""
        ...

    def finish(self, name: str, source: str) -> None:
        """Write what describes the files; the companions are in the folder by now."""
        ...

    def close(self) -> None:
        """Let go of files and threads. Idempotent."""
        ...


class BundleSink:
    """weights.bin and bundle.json.

    Args:
        folder: empty.
        spec: of the model.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder, self._spec = folder, spec
        self._entries, self._total = layout(spec)
        self._out = BlockWriter(folder / WEIGHTS)
        self._sha256 = ""

    def _begin(self, name: str) -> None:
        self._out.zeros(self._entries[name].offset - self._out.written)

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        self._begin(name)
        self._out.write(raw_bytes(tensor))

    def layer(self, index: int, layer: PlantedLayer) -> None:
        """See Sink."""
        stem, ones = f"layers.{index}", torch.ones(self._spec.d_model)
        self._put(f"{stem}.attention_norm", ones)
        self._put(f"{stem}.qkv", layer.qkv)
        self._put(f"{stem}.o", layer.o)
        self._put(f"{stem}.ffn_norm", ones)
        self._begin(f"{stem}.neurons")
        self._neurons(layer)

    def _neurons(self, layer: PlantedLayer) -> None:
        """Interleave rows into records."""
        record, itemsize = NeuronRecord.for_spec(self._spec), self._spec.element_bytes
        n, d = layer.gate_ND.shape
        step = max(1, RECORD_CHUNK_BYTES // record.record_bytes)
        for begin in range(0, n, step):
            part = slice(begin, min(n, begin + step))
            records = layer.gate_ND.new_zeros(part.stop - begin, record.record_bytes // itemsize)
            for offset, rows in (
                (record.gate_offset, layer.gate_ND),
                (record.up_offset, layer.up_ND),
                (record.down_offset, layer.down_ND),
            ):
                records[:, offset // itemsize :][:, :d] = rows[part]
            self._out.write(raw_bytes(records))

    def ends(self, signal: Signal) -> str:
        """See Sink."""
        self._put("embed", signal.embed_VD)
        self._put("head", signal.head_VD)
        self._put("final_norm", torch.ones(self._spec.d_model))
        self._out.zeros(self._total - self._out.written)
        self._sha256 = self._out.digest()
        self._out.close()
        return model_checksum(self._spec, self._sha256)

    def finish(self, name: str, source: str) -> None:
        """See Sink; leaves a stamp, so that the first opening reads no weights."""
        folder = self._folder
        files: dict[str, dict[str, Any]] = {
            companion: {
                "bytes": (folder / companion).stat().st_size,
                "sha256": file_digest(folder / companion),
            }
            for companion in COMPANIONS
            if (folder / companion).is_file()
        }
        weights = (self._sha256, self._total)
        header = write_header(folder, self._spec, name, source, weights, files)
        time.sleep(2 * RACY_NS / 1e9)  # so that the stamp is believed
        paths = {file: folder / file for file in (WEIGHTS, *files)}
        write_stamp([folder / STAMP], header["header_sha256"], paths)

    def close(self) -> None:
        """See Sink."""
        self._out.close()


class HuggingFaceSink:
    """Sharded safetensors, one shard a layer, with config.json.

    Args:
        folder: empty.
        spec: of the model.
    """

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self._folder, self._spec = folder, spec
        self._family = find_family(spec.architecture)
        self._dtype: torch.dtype = getattr(torch, spec.dtype)
        self._weight_map: dict[str, str] = {}
        self._bytes = 0
        self._open: TensorStream | None = None

    def _shard(self, shapes: dict[str, tuple[int, ...]], number: int) -> TensorStream:
        file = f"model-{number:05d}-of-{self._spec.n_layers + 1:05d}.safetensors"
        self._weight_map |= dict.fromkeys(shapes, file)
        announced = {name: (shape, self._dtype) for name, shape in shapes.items()}
        self._open = TensorStream(self._folder / file, announced)
        self._bytes += self._open.bytes
        return self._open

    def layer(self, index: int, layer: PlantedLayer) -> None:
        """See Sink."""
        shard = self._shard(self._family.layer_shapes(self._spec, index), index + 1)
        for name, make in self._family.layer_tensors(self._spec, index, layer).items():
            shard.write(name, make())
        shard.finish()

    def ends(self, signal: Signal) -> str:
        """See Sink."""
        tensors = self._family.end_tensors(self._spec, signal)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        shard = self._shard(shapes, self._spec.n_layers + 1)
        for name, tensor in tensors.items():
            shard.write(name, tensor)
        shard.finish()
        return ""

    def finish(self, name: str, source: str) -> None:
        """See Sink."""
        config = {**self._family.config(self._spec), "_name_or_path": name, "planted": source}
        index = {"metadata": {"total_size": self._bytes}, "weight_map": self._weight_map}
        ends = {"bos_token_id": self._spec.bos_ids[0], "eos_token_id": self._spec.eos_ids[0]}
        for file, data in ((INDEX, index), (GENERATION_CONFIG, ends), (CONFIG, config)):
            (self._folder / file).write_text(json.dumps(data, indent=1), encoding="ascii")

    def close(self) -> None:
        """See Sink."""
        if self._open is not None:
            self._open.close()
