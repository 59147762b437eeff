"""Write a Llama bundle as GGUF, so that llama.cpp can be timed on the same weights.

For benchmarks only: llama.cpp's Llama applies SiLU where these models apply ReLU, so the bytes and
the operations are the same and the text is not; the file carries no vocabulary, prompts are ids.
Source of the layout: the GGUF specification, version 3, and llama.cpp's converter, which permutes
query and key rows from rotate-half to interleaved pairs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotcold.runtime.errors import ConfigError
from hotcold.runtime.formats.bundle import Bundle
from hotcold.runtime.weights import WeightStore


def write_gguf(bundle: Bundle, path: Path) -> None:
    """Write a bundle's weights as a GGUF file of the architecture "llama"; atomic.

    Raises:
        ConfigError: not a Llama in float16 or float32, or the gguf package is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"writing GGUF needs the gguf package ({error}); pip install 'hotcold[rivals]'"
        ) from error
    spec = bundle.spec
    if spec.architecture != "llama" or spec.dtype == "bfloat16":
        raise ConfigError(
            f"GGUF is written for Llama models in float16 or float32, this one is "
            f"{spec.architecture} in {spec.dtype}"
        )
    temporary = path.with_name(f".{path.name}.tmp")
    writer = gguf.GGUFWriter(temporary, "llama")
    writer.add_name(bundle.name)
    writer.add_context_length(spec.max_context)
    writer.add_embedding_length(spec.d_model)
    writer.add_block_count(spec.n_layers)
    writer.add_feed_forward_length(spec.n_neurons)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(1 if spec.dtype == "float16" else 0)
    try:
        with WeightStore.open(bundle) as store:
            for name, tensor in _tensors(bundle, store):
                writer.add_tensor(name, tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    finally:
        writer.close()
    temporary.replace(path)


def _tensors(bundle: Bundle, store: WeightStore) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tensors by GGUF name; matrices in the bundle's dtype, norms float32."""
    spec, record = bundle.spec, bundle.record
    yield "token_embd.weight", store.array("embed")
    yield "output_norm.weight", store.array("final_norm")
    if not spec.tied:
        yield "output.weight", store.array("head")
    parts = {"gate": record.gate_offset, "up": record.up_offset, "down": record.down_offset}
    row_bytes = spec.d_model * spec.element_bytes
    for layer in range(spec.n_layers):
        ours, theirs = f"layers.{layer}", f"blk.{layer}"
        yield f"{theirs}.attn_norm.weight", store.array(f"{ours}.attention_norm")
        yield f"{theirs}.ffn_norm.weight", store.array(f"{ours}.ffn_norm")
        qkv = store.array(f"{ours}.qkv")
        q, k, v = np.split(qkv, [spec.q_dim, spec.q_dim + spec.kv_dim])
        yield f"{theirs}.attn_q.weight", _interleaved(q, spec.n_heads)
        yield f"{theirs}.attn_k.weight", _interleaved(k, spec.n_kv_heads)
        yield f"{theirs}.attn_v.weight", v
        yield f"{theirs}.attn_output.weight", store.array(f"{ours}.o")
        records = store.array(f"{ours}.neurons")
        for part, offset in parts.items():
            raw = np.ascontiguousarray(records[:, offset : offset + row_bytes])
            rows = raw.view(np.dtype(spec.dtype))
            yield f"{theirs}.ffn_{part}.weight", rows if part != "down" else _columns(rows)


def _columns(rows: NDArray[Any]) -> NDArray[Any]:
    """Down columns, stored as rows of records, back as a [D, N] matrix."""
    return np.ascontiguousarray(rows.T)


def _interleaved(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rotate-half rows of every head in the order of interleaved pairs."""
    shape = (heads, 2, rows.shape[0] // heads // 2, rows.shape[1])
    return np.ascontiguousarray(rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape))
